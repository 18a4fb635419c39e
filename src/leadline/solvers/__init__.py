"""Solvers: find latents, or a Gaussian over latents, that make a behaviour likely. They see parameters and a closure,
never a model. `solver_for` holds the written rule for step sizes."""

from __future__ import annotations

from leadline.interventions.base import Intervention
from leadline.solvers.base import Solver
from leadline.solvers.gradient import Gradient
from leadline.solvers.variational import Variational

RATE = 0.07  # for one soft token; the rule below scales it (benchmarks/learning_rate.py)


def solver_for(beta: float | None, first_beta: float | None, intervention: Intervention) -> Solver:
    """The solver of one cell: gradient without a beta, else variational with beta rising from `first_beta`.

    Step size: RATE / sqrt(tokens), since the step of all tokens together grows with the square root of their number.
    """
    rate = RATE / intervention.tokens**0.5
    if beta is None:
        return Gradient(rate)
    return Variational(first_beta=first_beta or beta, beta=beta, rate=rate, scale_rate=0.1)
