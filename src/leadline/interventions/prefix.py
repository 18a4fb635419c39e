"""prefix: keys and values of K tokens that nobody wrote, in every block (prefix tuning, Li & Liang, 2101.00190). It
stands behind what all contexts start with, whatever the slot: one prefix for all of them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from leadline.edits import KeyValueEdit
from leadline.interventions.base import Intervention
from leadline.priors import Priors


@final
class Prefix(Intervention):
    """K tokens; a latent is (2, K, blocks, heads, head size) whitened coordinates, keys first. Mean and scale of the
    prior are those of natural keys and values, per block, head and dimension."""

    family = "prefix"

    def __init__(self, size: int, priors: Priors) -> None:
        self.size = self.tokens = size
        natural = priors.natural
        moments = torch.stack([natural.keys, natural.values])
        self._mean, self._scale = moments[:, 0, None], moments[:, 1, None]
        self.shape = (2, size, *moments.shape[2:])
        self.prior = "N(mu, sigma^2) of natural keys and values, per block, head and dimension"

    def edit(self, latents: Tensor) -> KeyValueEdit:
        keys, values = (self._mean + self._scale * latents).permute(1, 0, 3, 4, 2, 5)
        return KeyValueEdit(keys, values)
