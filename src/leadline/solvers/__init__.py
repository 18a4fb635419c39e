"""Solvers: find latents, or a Gaussian over latents, that make a behaviour likely. They see parameters and a closure,
never a model. `solver_for` holds the written rule for step sizes."""

from __future__ import annotations

from leadline.solvers.base import Solver
from leadline.solvers.gradient import Gradient
from leadline.solvers.variational import Variational

# Adam's step sizes in whitened coordinates, the same at every size (benchmarks/learning_rate.py, docs/decisions.md).
POINT_RATE, MEAN_RATE, WIDTH_RATE = 0.14, 0.07, 0.1
DIRECTIONS, DIRECTION_RATE = 32, 0.01  # along which q is squeezed, and the step of their entries
SETTLED_BITS = 0.01  # a reply: the model writes the target in 993 of 1,000 tries


def solver_for(beta: float | None, first_beta: float | None, rewarded: bool = False) -> Solver:
    """The solver of one cell: gradient without a beta, else variational with beta rising from `first_beta`.

    rewarded: the loss is made of rewards. They are too noisy to aim q's directions by, and a shortfall is no loss in
              bits that could settle
    """
    if beta is None:
        return Gradient(POINT_RATE, None if rewarded else SETTLED_BITS)
    return Variational(
        first_beta=first_beta or beta, beta=beta, rate=MEAN_RATE, scale_rate=WIDTH_RATE,
        directions=0 if rewarded else DIRECTIONS, direction_rate=DIRECTION_RATE,
    )  # fmt: skip
