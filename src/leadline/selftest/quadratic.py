"""A quadratic loss under a Gaussian prior, where the best q is known in closed form at every beta (docs/measurement.md,
K2), and q trained on it by the shipped solver. It knows no models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from leadline.edits import Edit
from leadline.interventions.base import Intervention
from leadline.solvers.base import Parameters, Row, begin, train
from leadline.solvers.variational import Variational

BETAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Plain(Intervention):
    """Latents of so many dimensions that write nothing: solvers need no model."""

    family, size, tokens, prior = "plain", 1, 1, "N(0, I)"

    def __init__(self, dimensions: int) -> None:
        self.shape = (dimensions,)

    def edit(self, latents: Tensor) -> Edit:
        raise AssertionError("a solver asks for no edit")


def quadratic(seed: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """A centre and a positive definite Hessian with off-diagonal terms."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dimensions, dimensions, generator=generator) / math.sqrt(dimensions)
    return torch.randn(dimensions, generator=generator), root @ root.T + 0.3 * torch.eye(dimensions)


def best(centre: Tensor, hessian: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(d,) mean and (d, d) precision of the Gaussian that makes E_q[(z - a)' H (z - a) / 2] bits + beta KL bits least;
    of independent coordinates the best have the same mean, and the diagonal of that precision."""
    # loss and KL are both in bits, so in nats the loss weighs ln 2 / beta as much as the divergence
    pull = hessian * math.log(2) / beta
    precision = torch.eye(len(centre)) + pull
    return torch.linalg.solve(precision, pull @ centre), precision


def trained(
    betas: Sequence[float], centre: Tensor, hessian: Tensor, steps: int = 700, draws: int = 8192, directions: int = 0
) -> list[Parameters]:
    """Rows of one batch, a beta each, on E_q[(z - a)' H (z - a) / 2] bits + beta KL bits."""
    plain = Plain(len(centre))
    solvers = [
        Variational(first_beta=beta, beta=beta, rate=0.02, scale_rate=0.02, directions=directions, direction_rate=0.05)
        for beta in betas
    ]
    rows = [Row(f"beta {beta}", plain, solver, 0, draws) for beta, solver in zip(betas, solvers, strict=True)]

    def loss(step: int, latents: list[Tensor]) -> Tensor:
        gaps = [latent - centre for latent in latents]
        return torch.stack([0.5 * ((gap @ hessian) * gap).sum(-1).mean() for gap in gaps])

    return train(rows, loss, steps, begin(rows, [None] * len(rows), torch.device("cpu"))).parameters


def covariance(parameters: Parameters) -> Tensor:
    """Of q, from what the solver draws for the unit vectors as noise: it is linear in its noise."""
    solver = Variational(1.0, 1.0, 0.0, 0.0)
    root = (
        solver.draw(parameters, torch.eye(len(parameters["mean"]), dtype=parameters["mean"].dtype)) - parameters["mean"]
    )
    return root.T @ root
