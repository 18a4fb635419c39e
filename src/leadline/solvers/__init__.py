"""Solvers: find latents, or a Gaussian over latents, that make a behaviour likely. They see parameters and a closure,
never a model. `solver_for` holds the written rule for step sizes."""

from __future__ import annotations

from leadline.solvers.base import Solver
from leadline.solvers.gradient import Gradient
from leadline.solvers.variational import Variational

# Adam's step sizes in whitened coordinates, the same at every size (benchmarks/learning_rate.py, docs/decisions.md).
POINT_RATE, MEAN_RATE, WIDTH_RATE = 0.14, 0.07, 0.1
DIRECTIONS, DIRECTION_RATE = 32, 0.01  # along which q is squeezed, and the step of their entries


def solver_for(beta: float | None, first_beta: float | None, directions: int = DIRECTIONS) -> Solver:
    """The solver of one cell: gradient without a beta, else variational with beta rising from `first_beta`, whose q is
    squeezed along `directions`."""
    if beta is None:
        return Gradient(POINT_RATE)
    return Variational(
        first_beta=first_beta or beta, beta=beta, rate=MEAN_RATE, scale_rate=WIDTH_RATE, directions=directions,
        direction_rate=DIRECTION_RATE,
    )  # fmt: skip
