"""gradient: one latent, trained to make the target likely. The solver of the size curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor

from leadline.interventions.base import Intervention
from leadline.priors import normal
from leadline.solvers.base import Parameters, Solver


@final
@dataclass(frozen=True)
class Gradient(Solver):
    """Adam on the latent, cosine decay to a tenth.

    rate: step size in whitened coordinates, where a vocabulary embedding is about 1 from the mean in each dimension
    """

    rate: float
    settled_bits: float | None = None

    def start(self, intervention: Intervention, seed: int) -> Parameters:
        labels = ("start", intervention.family, intervention.size, seed)
        return {"mean": intervention.first_offset * normal(intervention.shape, *labels)}

    def draw(self, parameters: Parameters, noise: Tensor) -> Tensor:
        return parameters["mean"].expand_as(noise)

    def penalty_bits(self, parameters: Parameters, progress: float) -> Tensor:
        return parameters["mean"].new_zeros(())

    def learning_rates(self, progress: float) -> dict[str, float]:
        return {"mean": self.rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))}
