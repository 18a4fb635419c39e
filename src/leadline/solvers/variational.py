"""variational: q = N(m, diag s^2) over latents, trained by E_q[loss in bits] + beta KL(q || prior) in bits.

beta (bits of loss per bit of KL) rises from `first_beta` to `beta` over the first part of the batch and then rests, so
that q first finds the behaviour and then gives up every bit that the behaviour does not need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from leadline.interventions.base import Intervention
from leadline.priors import normal
from leadline.solvers.base import START, Parameters, Solver

FIRST_SCALE = 0.15  # width of q at the start, in units of the prior's


@final
@dataclass(frozen=True)
class Variational(Solver):
    """Adam on mean and log width, steps shrinking to a twentieth.

    first_beta, beta: price of a bit of KL at the start and at the end
    rate, scale_rate: step sizes of the mean and of the log width, in whitened coordinates
    ramp:             share of the batch over which beta rises
    """

    first_beta: float
    beta: float
    rate: float
    scale_rate: float
    ramp: float = 0.7

    def start(self, intervention: Intervention, seed: int) -> Parameters:
        mean = START * normal(intervention.shape, "start", intervention.family, intervention.size, seed)
        return {"mean": mean, "log_scale": torch.full(intervention.shape, math.log(FIRST_SCALE))}

    def draw(self, parameters: Parameters, noise: Tensor) -> Tensor:
        return parameters["mean"] + parameters["log_scale"].exp() * noise

    def penalty_bits(self, parameters: Parameters, progress: float) -> Tensor:
        location, width = kl_parts_bits(parameters)
        return self.beta_at(progress) * (location + width)

    def learning_rates(self, progress: float) -> dict[str, float]:
        decay = 1 - 0.95 * progress
        return {"mean": self.rate * decay, "log_scale": self.scale_rate * decay}

    def beta_at(self, progress: float) -> float:
        """beta after this share of the batch."""
        return float(self.first_beta * (self.beta / self.first_beta) ** min(1.0, progress / self.ramp))


def kl_parts_bits(parameters: Parameters) -> tuple[Tensor, Tensor]:
    """KL(N(m, diag s^2) || N(0, I)) in bits, as its location part m^2 / 2 and its width part (s^2 - 1) / 2 - ln s."""
    mean, log_scale = parameters["mean"], parameters["log_scale"]
    location = mean.square().sum() / (2 * math.log(2))
    width = ((2 * log_scale).exp() - 1 - 2 * log_scale).sum() / (2 * math.log(2))
    return location, width
