"""soft_subspace: r dimensions of one soft token: resolution below a token, at the norm of a whole one."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from leadline.edits import EmbeddingEdit
from leadline.interventions.base import Intervention
from leadline.priors import EmbeddingPrior, generator
from leadline.spec import UserError


@final
class SoftSubspace(Intervention):
    """r dimensions: u = sqrt(d / r) B v, v ~ N(0, I_r), B an orthonormal basis that is seeded, hence fixed before any
    behaviour is seen, and nested: the basis of r dimensions is the first r columns of that of more."""

    family = "soft_subspace"
    tokens = 1

    def __init__(self, size: int, prior: EmbeddingPrior) -> None:
        hidden = len(prior.mean)
        if size > hidden:
            raise UserError(
                f"{size} dimensions do not fit into one token of {hidden}", "--sizes",
                "Use smaller sizes, or the family soft_prompt.",
            )  # fmt: skip
        self.size = size
        self.shape = (size,)
        self.prior = f"{prior.name}, seeded subspace at equal norm"
        self._prior = prior
        # QR column by column is Gram-Schmidt: the first r columns depend on the first r draws alone.
        draws = torch.randn(hidden, hidden, generator=generator("soft_subspace"), dtype=torch.float64).T[:, :size]
        basis = torch.linalg.qr(draws.contiguous()).Q
        self._basis = (basis * math.sqrt(hidden / size)).float().to(prior.mean.device)

    def edit(self, latents: Tensor) -> EmbeddingEdit:
        return EmbeddingEdit(self._prior.embeddings(latents @ self._basis.T)[:, None], (1,) * len(latents))
