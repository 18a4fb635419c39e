"""Regularisers: solvers around a solver, and a loss around a loss, that make a solution flatter or more readable.

For training alone. Draws that anything is scored by come from `inner`: noise or dropout on top of them would be
another q than the one whose KL is quoted. None of these is part of the price of q.

Use from Python, each around another; `measure` trains without them:

    solver = Noise(VocabularyPull(Gradient(0.14), strength=0.01, table=table), scale=0.1)
    row = Row("flat", intervention, solver, seed=0, draws=8)
    state = train([row], adversarial(loss, radius=0.5), steps, begin([row], [None], device))

Randomness. `draw` is given standard normal noise that is a pure function of the row and the step (`base.train`). Noise
and Dropout seed a generator with its first numbers and their own name: what they add is then a function of row and step
as well, so a batch that goes on from a checkpoint ends in the same numbers, and nothing has to be stored or counted.
Using the numbers of `noise` themselves would tie what is added to the inner solver's own draw. The same class twice
around one solver would add the same numbers twice; that is of no use, and not looked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from leadline.interventions.base import Intervention
from leadline.priors import generator, normal
from leadline.solvers.base import Loss, Parameters, Solver
from leadline.spec import UserError

SEED_NUMBERS = 8  # numbers of `noise` that seed what is added: 24 bits or so each


@final
@dataclass(frozen=True)
class Noise(Solver):
    """Trains under isotropic noise on every draw, so that a wide valley is preferred to a deep narrow one.

    The loss that is descended is E[loss(z + scale * e)], about loss + scale^2 trace(H) / 2.
    scale: standard deviation in each dimension, as a share of the prior's
    """

    inner: Solver
    scale: float

    def start(self, intervention: Intervention, seed: int) -> Parameters:
        return self.inner.start(intervention, seed)

    def draw(self, parameters: Parameters, noise: Tensor) -> Tensor:
        added = normal(tuple(noise.shape), "noise", *_seed(noise)).to(noise)
        return self.inner.draw(parameters, noise) + self.scale * added

    def penalty_bits(self, parameters: Parameters, progress: float) -> Tensor:
        return self.inner.penalty_bits(parameters, progress)

    def learning_rates(self, progress: float) -> dict[str, float]:
        return self.inner.learning_rates(progress)


@final
@dataclass(frozen=True)
class Dropout(Solver):
    """Trains with whole tokens of a draw put at the prior's mean, so that no token is indispensable.

    Nothing is scaled up for it: the token that stands there at use is the one that was trained. Needs latents of shape
    (K, hidden).
    share: probability that a token is dropped
    """

    inner: Solver
    share: float

    def start(self, intervention: Intervention, seed: int) -> Parameters:
        _need_tokens(intervention, "token dropout")
        return self.inner.start(intervention, seed)

    def draw(self, parameters: Parameters, noise: Tensor) -> Tensor:
        chances = torch.rand(noise.shape[:-1], generator=generator("dropout", *_seed(noise))).to(noise.device)
        # where and not a product: a token of inf would leave NaN behind
        latents = self.inner.draw(parameters, noise)
        return torch.where((chances >= self.share)[..., None], latents, torch.zeros_like(latents))

    def penalty_bits(self, parameters: Parameters, progress: float) -> Tensor:
        return self.inner.penalty_bits(parameters, progress)

    def learning_rates(self, progress: float) -> dict[str, float]:
        return self.inner.learning_rates(progress)


@final
@dataclass(frozen=True, eq=False)
class VocabularyPull(Solver):
    """Adds a penalty on the distance of each token's mean from the vocabulary embedding that is nearest to it.

    In bits: strength * sum over tokens of min_v norm(m - e_v)^2 / (2 ln 2), the location part of a KL from N(e_v, I),
    so that `strength` weighs as beta does. Nothing over the first half of the batch, then rising to the full: at the
    start all tokens lie near the prior's mean, where the nearest embedding says nothing of the solution, and a strong
    pull would choose it for good. Needs latents of shape (K, hidden).
    table: (V, hidden) vocabulary embeddings in whitened coordinates
    """

    inner: Solver
    strength: float
    table: Tensor

    def start(self, intervention: Intervention, seed: int) -> Parameters:
        _need_tokens(intervention, "a pull to the vocabulary")
        return self.inner.start(intervention, seed)

    def draw(self, parameters: Parameters, noise: Tensor) -> Tensor:
        return self.inner.draw(parameters, noise)

    def penalty_bits(self, parameters: Parameters, progress: float) -> Tensor:
        mean = parameters["mean"]
        table = self.table.to(mean)
        # which one is nearest is chosen without gradient; a distance has none at zero, its square has
        nearest = table[torch.cdist(mean.detach(), table).argmin(-1)]
        gap_bits = (mean - nearest).square().sum() / (2 * math.log(2))
        return self.inner.penalty_bits(parameters, progress) + self.strength * max(0.0, 2 * progress - 1) * gap_bits

    def learning_rates(self, progress: float) -> dict[str, float]:
        return self.inner.learning_rates(progress)


def adversarial(loss: Loss, radius: float) -> Loss:
    """The loss after one step of ascent, of length `radius` (Euclidean, whitened coordinates) for each draw.

    A loss and no solver, since a solver never sees the loss. The step is held fixed while descending, as in Miyato and
    others (1605.07725, on embeddings) and Foret and others (2010.01412, on weights); to first order it adds
    radius * norm(gradient). Twice the arithmetic. A draw whose gradient is zero or not finite stays where it is.
    """

    def worst(step: int, latents: list[Tensor]) -> Tensor:
        points = [latent.detach().requires_grad_() for latent in latents]
        gradients = torch.autograd.grad(loss(step, points).sum(), points)
        return loss(step, [z + radius * _direction(g) for z, g in zip(latents, gradients, strict=True)])

    return worst


def _direction(gradient: Tensor) -> Tensor:
    """(draws, *shape) gradients at length one, each draw by itself; zero where that cannot be."""
    norm = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.dim() - 1))
    return torch.where((norm > 0) & torch.isfinite(norm), gradient / norm, torch.zeros_like(gradient))


def _seed(noise: Tensor) -> list[float]:
    found: list[float] = noise.flatten()[:SEED_NUMBERS].tolist()
    return found


def _need_tokens(intervention: Intervention, what: str) -> None:
    if len(intervention.shape) != 2:
        where = f"{intervention.family}, latents of shape {intervention.shape}"
        raise UserError(f"{what} needs latents that are tokens", where, "Use a soft_prompt, or train without it.")
