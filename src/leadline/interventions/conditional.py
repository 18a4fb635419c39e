"""conditional: another family whose latent is a linear map of numbers that each context comes with, so that one
intervention says something else under every condition. What the numbers mean, and the text, it does not know.

The linear input model of Nordby, "Soft Prompts for Evaluation" (arXiv 2505.14943), under a prior; a deeper one would
need a prior of its own on every layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from leadline.edits import Edit
from leadline.interventions.base import Intervention
from leadline.spec import UserError


@final
class Conditional(Intervention):
    """f(c) = (w_0 + sum_i c_i w_i) / sqrt(n + 1) is the whitened latent of `inner` in a row with the conditions c. A
    latent here holds w_0 ... w_n, each of the shape of one of `inner`'s, all N(0, I).

    Conditions are standardised: over the contexts of a behaviour they have mean 0 and mean square 1, so that a draw has
    variance 1 in every coordinate of f on their average; in a row it is (1 + |c|^2) / (n + 1).
    """

    def __init__(self, inner: Intervention, conditions: int, given: Sequence[tuple[float, ...]] = ()) -> None:
        self.family = f"conditional_{inner.family}"
        if not conditions:
            raise UserError(
                f"The family {self.family} needs numbers that each context comes with, and this behaviour has none",
                "--family", f"Use {inner.family}, or a behaviour with `conditions`, as pathfinding is.",
            )  # fmt: skip
        self.size, self.tokens = inner.size, inner.tokens
        self.shape = (conditions + 1, *inner.shape)
        self.prior = f"{inner.prior}; linear in {conditions} standardised condition{'s' if conditions > 1 else ''}"
        self._inner, self._given = inner, given

    def given(self, conditions: Sequence[tuple[float, ...]]) -> Conditional:
        return Conditional(self._inner, self.shape[0] - 1, conditions)

    def edit(self, latents: Tensor) -> Edit:
        """Raises ValueError where it was not given the conditions of as many rows."""
        known = torch.tensor([(1.0, *row) for row in self._given], dtype=latents.dtype, device=latents.device)
        if known.shape != latents.shape[:2]:
            raise ValueError(f"{tuple(latents.shape[:2])} weights do not fit the conditions {tuple(known.shape)}")
        return self._inner.edit(torch.einsum("rc,rc...->r...", known, latents) / math.sqrt(self.shape[0]))
