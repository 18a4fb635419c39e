"""steering: a vector added to the residual stream behind some blocks. It says nothing of tokens, and cannot change what
stands before the slot."""

from __future__ import annotations

import math
from typing import final

from torch import Tensor

from leadline.edits import ResidualEdit
from leadline.interventions.base import Intervention
from leadline.priors import Priors
from leadline.spec import UserError


@final
class Steering(Intervention):
    """So many sites, evenly spaced over the blocks, one in the middle of them; the last block is never one of them,
    for behind it a vector would be no more than a bias on the logits.

    The prior of a site is that of the difference between two natural activations there: N(0, 2 sigma^2) per dimension.
    """

    family = "steering"
    tokens = 0

    def __init__(self, size: int, priors: Priors) -> None:
        blocks = len(priors.model.layers)
        if size > blocks - 1:
            raise UserError(
                f"{size} sites do not fit behind the blocks of a model that has {blocks}, the last left out", "--sizes",
                "Use smaller sizes.",
            )  # fmt: skip
        self.size = size
        self.sites = tuple(round((place + 0.5) * (blocks - 1) / size - 0.5) for place in range(size))
        self.shape = (size, priors.model.hidden_size)
        self.prior = "N(0, 2 sigma^2) of natural activations, per site and dimension"
        self._scale = math.sqrt(2.0) * priors.natural.residual[list(self.sites)]

    def edit(self, latents: Tensor) -> ResidualEdit:
        return ResidualEdit(latents * self._scale, self.sites)
