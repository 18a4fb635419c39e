"""variational: a Gaussian q over latents, trained by E_q[loss in bits] + beta KL(q || prior) in bits.

q has a mean and a width in every coordinate, and is squeezed along a few directions that are trained as well. Without
them a behaviour that minds one direction which is no axis makes every coordinate narrow, and that is what costs most
(LOG.md). Noise e becomes e - Q' (1 - a) Q e before it is scaled, Q orthonormal: draws, divergence and density stay in
closed form, with work linear in the dimension.

beta (bits of loss per bit of KL) rises from `first_beta` to `beta` over the first part of the batch and then rests, so
that q first finds the behaviour and then gives up every bit that the behaviour does not need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from leadline.interventions.base import Intervention
from leadline.priors import normal
from leadline.solvers.base import Loss, Parameters, Row, Solver, State

FIRST_SQUEEZE = 0.6  # factor along the trained directions at the start: at 1 they would have no gradient
AIM_PASSES = 12  # batches whose gradients the directions of a new cell are taken from


@final
@dataclass(frozen=True)
class Variational(Solver):
    """Adam on mean, log widths and directions, steps shrinking to a twentieth.

    first_beta, beta: price of a bit of KL at the start and at the end
    rate, scale_rate: step sizes of the mean and of the log widths, in whitened coordinates
    directions:       how many q is squeezed along, at most as many as there are dimensions
    direction_rate:   step size of their entries, which start as standard normal numbers
    ramp:             share of the batch over which beta rises
    """

    first_beta: float
    beta: float
    rate: float
    scale_rate: float
    directions: int = 0
    direction_rate: float = 0.0
    ramp: float = 0.7

    def start(self, intervention: Intervention, seed: int) -> Parameters:
        labels = ("start", intervention.family, intervention.size, seed)
        mean = intervention.first_offset * normal(intervention.shape, *labels)
        found = {"mean": mean, "log_scale": torch.full(intervention.shape, math.log(intervention.first_width))}
        if count := min(self.directions, intervention.dimensions):
            found["directions"] = normal((count, intervention.dimensions), *labels, "directions")
            found["log_squeeze"] = torch.full((count,), math.log(FIRST_SQUEEZE))
        return found

    def prepared(self, parameters: Parameters) -> Parameters:
        return {**parameters, "basis": _basis(parameters)} if "directions" in parameters else parameters

    def draw(self, parameters: Parameters, noise: Tensor) -> Tensor:
        if "directions" in parameters:
            basis, flat = _basis(parameters), noise.flatten(1)
            along = (flat @ basis) * (1 - parameters["log_squeeze"].exp())
            noise = (flat - along @ basis.T).view_as(noise)
        return parameters["mean"] + parameters["log_scale"].exp() * noise

    def penalty_bits(self, parameters: Parameters, progress: float) -> Tensor:
        location, width = kl_parts_bits(parameters)
        return self.beta_at(progress) * (location + width)

    def learning_rates(self, progress: float) -> dict[str, float]:
        decay = 1 - 0.95 * progress
        widths = self.scale_rate * decay
        return {
            "mean": self.rate * decay, "log_scale": widths, "log_squeeze": widths,
            "directions": self.direction_rate * decay,
        }  # fmt: skip

    def beta_at(self, progress: float) -> float:
        """beta after this share of the batch."""
        return float(self.first_beta * (self.beta / self.first_beta) ** min(1.0, progress / self.ramp))


def aim(rows: Sequence[Row], state: State, loss: Loss, fresh: Sequence[bool]) -> None:
    """Points the squeeze of every row, before its first step, to where the loss is steepest under its q: to the leading
    right singular vectors of the gradients by the noise of AIM_PASSES batches of draws. Directions that start anywhere
    else do not find there within a batch (LOG.md).

    fresh: rows that were squeezed along nothing before; the others keep the variance that they have along the new ones
    """
    gradients: list[list[Tensor]] = [[] for _ in rows]
    for number in range(AIM_PASSES):
        latents = []
        for row, leaf in zip(rows, state.parameters, strict=True):
            noise = normal((row.draws, *row.intervention.shape), row.name, "aim", number).to(leaf["mean"].device)
            latents.append(row.solver.draw(leaf, noise).detach().requires_grad_())
        found = torch.autograd.grad(loss(number, latents).nan_to_num().sum(), latents, allow_unused=True)
        for place, gradient in enumerate(found):
            if gradient is not None:
                gradients[place].append(gradient.flatten(1).nan_to_num(posinf=0.0, neginf=0.0))
    for leaf, parts, new in zip(state.parameters, gradients, fresh, strict=True):
        if "directions" not in leaf or not parts:
            continue
        steep = torch.cat(parts) * leaf["log_scale"].flatten().exp()
        count, dimensions = leaf["directions"].shape
        leading = torch.linalg.svd(steep, full_matrices=False).Vh[:count]
        variance = torch.full_like(leaf["log_squeeze"][: len(leading)], FIRST_SQUEEZE**2)
        if not new:
            along = (leading @ _basis(leaf)).square()
            variance = 1 - along @ (1 - (2 * leaf["log_squeeze"]).exp())
        leaf["directions"][: len(leading)] = leading * math.sqrt(dimensions)
        leaf["log_squeeze"][: len(leading)] = variance.clamp_min(1e-4).log() / 2


def kl_parts_bits(parameters: Parameters) -> tuple[Tensor, Tensor]:
    """KL(q || N(0, I)) in bits, as its location part m^2 / 2 and its width part, (s^2 - 1) / 2 - ln s in every
    coordinate and ((a^2 - 1) |s q|^2) / 2 - ln a along every direction q."""
    mean, log_scale = parameters["mean"], parameters["log_scale"]
    location = mean.square().sum() / (2 * math.log(2))
    width = ((2 * log_scale).exp() - 1 - 2 * log_scale).sum()
    if "directions" in parameters:
        stretched = (_basis(parameters) * log_scale.flatten().exp()[:, None]).square().sum(0)
        log_squeeze = parameters["log_squeeze"]
        width = width + (((2 * log_squeeze).exp() - 1) * stretched - 2 * log_squeeze).sum()
    return location, width / (2 * math.log(2))


def _basis(parameters: Parameters) -> Tensor:
    """(dimensions, r) orthonormal columns that span the trained directions, in order."""
    ready = parameters.get("basis")
    found: Tensor = torch.linalg.qr(parameters["directions"].T).Q if ready is None else ready
    return found
