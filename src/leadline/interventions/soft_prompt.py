"""soft_prompt: K free input embeddings at the slot. It cannot change what stands before the slot, nor weights."""

from __future__ import annotations

from typing import final

from torch import Tensor

from leadline.edits import EmbeddingEdit
from leadline.interventions.base import Intervention
from leadline.priors import EmbeddingPrior

# How far a token starts from the vocabulary's mean for each token of the prompt, and at most. From farther out q has
# more to win back than points gain (docs/decisions.md).
FIRST_OFFSET, MOST_OFFSET = 0.1, 0.4


@final
class SoftPrompt(Intervention):
    """K tokens; a latent is (K, hidden) whitened coordinates."""

    family = "soft_prompt"

    def __init__(self, size: int, prior: EmbeddingPrior) -> None:
        self.size = self.tokens = size
        self.shape = (size, len(prior.mean))
        self.prior = prior.name
        # Tokens that start alike get gradients alike, and what they change of the reply adds up: many must start apart.
        self.first_offset = min(MOST_OFFSET, FIRST_OFFSET * size)
        self._prior = prior

    def edit(self, latents: Tensor) -> EmbeddingEdit:
        return EmbeddingEdit(self._prior.embeddings(latents), (self.tokens,) * len(latents))
