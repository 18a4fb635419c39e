"""soft_prompt: K free input embeddings at the slot. It cannot change what stands before the slot, nor weights."""

from __future__ import annotations

from typing import final

from torch import Tensor

from leadline.edits import EmbeddingEdit
from leadline.interventions.base import Intervention
from leadline.priors import EmbeddingPrior


@final
class SoftPrompt(Intervention):
    """K tokens; a latent is (K, hidden) whitened coordinates."""

    family = "soft_prompt"

    def __init__(self, size: int, prior: EmbeddingPrior) -> None:
        self.size = self.tokens = size
        self.shape = (size, len(prior.mean))
        self.prior = prior.name
        self._prior = prior

    def edit(self, latents: Tensor) -> EmbeddingEdit:
        return EmbeddingEdit(self._prior.embeddings(latents), (self.tokens,) * len(latents))
