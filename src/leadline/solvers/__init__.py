"""Solvers: find latents, or a Gaussian over latents, that make a behaviour likely. They see parameters and a closure,
never a model. `solver_for` holds the written rule for step sizes."""

from __future__ import annotations

from leadline.interventions.base import Intervention
from leadline.solvers.base import Solver
from leadline.solvers.gradient import Gradient
from leadline.solvers.variational import Variational

RATE = 0.14  # at every size (benchmarks/learning_rate.py)


def solver_for(beta: float | None, first_beta: float | None, intervention: Intervention) -> Solver:
    """The solver of one cell: gradient without a beta, else variational with beta rising from `first_beta`."""
    if beta is None:
        return Gradient(RATE)
    rate = 0.07 / intervention.tokens**0.5
    return Variational(first_beta=first_beta or beta, beta=beta, rate=rate, scale_rate=0.1)
