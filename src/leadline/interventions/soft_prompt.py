"""soft_prompt: K free input embeddings at the slot. It cannot change what stands before the slot, nor weights."""

from __future__ import annotations

from typing import final

from torch import Tensor

from leadline.edits import EmbeddingEdit
from leadline.interventions.base import Intervention
from leadline.priors import EmbeddingPrior

FIRST_OFFSET = 0.1  # how far a token of a prompt starts from the vocabulary's mean, a token of the prompt (benchmarks)


@final
class SoftPrompt(Intervention):
    """K tokens; a latent is (K, hidden) whitened coordinates."""

    family = "soft_prompt"

    def __init__(self, size: int, prior: EmbeddingPrior) -> None:
        self.size = self.tokens = size
        self.shape = (size, len(prior.mean))
        self.prior = prior.name
        # Tokens that start alike get gradients alike, and what they change of the reply adds up: many must start apart.
        self.first_offset = min(1.0, FIRST_OFFSET * size)
        self._prior = prior

    def edit(self, latents: Tensor) -> EmbeddingEdit:
        return EmbeddingEdit(self._prior.embeddings(latents), (self.tokens,) * len(latents))
