"""lora and tinylora: changes of low rank to the linear maps of all blocks. They act on every position, before the slot
too, so that nothing of a context can be run ahead of them.

PEFT's own start of LoRA, one factor zero, is a point and no prior. Here a draw changes every map by a stated share of
its norm, and nothing is scaled afterwards.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from leadline.edits import WeightEdit
from leadline.interventions.base import Intervention
from leadline.priors import RELATIVE_NORM, Priors, generator
from leadline.spec import UserError


@final
class Lora(Intervention):
    """Rank r (LoRA, Hu et al., 2106.09685): dW = B A, A and B Gaussian with E norm(dW)^2 = (RELATIVE_NORM norm(W))^2.
    A latent holds the factors of all maps, one after the other."""

    family = "lora"
    tokens = 0

    def __init__(self, size: int, priors: Priors) -> None:
        widest = max(min(weight.shape) for weight in priors.linear.values())
        if size > widest:
            what = f"Rank {size} is more than any map of this model has, {widest}"
            raise UserError(what, "--sizes", "Use smaller sizes.")
        self.size = size
        self.prior = f"N(0, sigma^2) on both factors, norm(dW) / norm(W) = {RELATIVE_NORM}"
        self._parts: list[tuple[str, int, int, float]] = []
        for name, weight in priors.linear.items():
            outputs, inputs = weight.shape
            scale = RELATIVE_NORM * float(weight.float().norm()) / math.sqrt(size * outputs * inputs)
            self._parts.append((name, outputs, inputs, math.sqrt(scale)))
        self.shape = (size * sum(outputs + inputs for _, outputs, inputs, _ in self._parts),)

    def edit(self, latents: Tensor) -> WeightEdit:
        down, up, rows = {}, {}, len(latents)
        # in one piece: the gradient of each slice by itself would be as large as all of them
        lengths = [self.size * length for _, outputs, inputs, _ in self._parts for length in (inputs, outputs)]
        factors = iter(torch.split(latents, lengths, 1))
        for name, outputs, inputs, scale in self._parts:
            down[name] = scale * next(factors).view(rows, self.size, inputs)
            up[name] = scale * next(factors).view(rows, outputs, self.size)
        return WeightEdit(down, up)


@final
class TinyLora(Intervention):
    """So many numbers v, shared by all maps, as PEFT's TinyLoRA has them: dW = U sqrt(S) R sqrt(S) V with the leading
    LEADING singular vectors of W and R = sum_i v_i P_i over fixed random matrices; v is scaled so that a draw of the
    prior has E norm(dW)^2 = (RELATIVE_NORM norm(W))^2 in every map."""

    family = "tinylora"
    tokens = 0

    def __init__(self, size: int, priors: Priors) -> None:
        self.size = size
        self.shape = (size,)
        self.prior = f"N(0, 1) on numbers shared by all maps, norm(dW) / norm(W) = {RELATIVE_NORM}"
        self._down: dict[str, Tensor] = {}
        self._turned: dict[str, Tensor] = {}  # (size, outputs, rank): U sqrt(S) P_i, scaled
        for name, weight in priors.linear.items():
            left, values, right = priors.leading[name]
            turns = torch.randn(size, len(values), len(values), generator=generator("tinylora", name))
            turned, down = (left * values.sqrt()) @ turns, values.sqrt()[:, None] * right
            # E norm(dW)^2 = sum_i norm(turned_i down)^2, since v has variance 1
            square = (torch.einsum("iok,iol->kl", turned, turned) * (down @ down.T)).sum()
            scale = RELATIVE_NORM * weight.float().norm().cpu() / square.sqrt()
            self._down[name] = down.to(weight.device)
            self._turned[name] = (scale * turned).to(weight.device)

    def edit(self, latents: Tensor) -> WeightEdit:
        down = {name: factor.expand(len(latents), *factor.shape) for name, factor in self._down.items()}
        up = {name: torch.einsum("ri,iok->rok", latents, turned) for name, turned in self._turned.items()}
        return WeightEdit(down, up)
