"""soft_edits: the deployed prompt with noise on its embeddings, where `prompt_edits` replaces tokens of it: how small a
disturbance brings the behaviour about? It cannot add tokens or take any away, and what it finds is no text.

    pi = N(e(prompt), (size / 8 sigma)^2)                     sigma: the vocabulary's own spread in each dimension
"""

from __future__ import annotations

from typing import final

from torch import Tensor

from leadline.edits import EmbeddingEdit
from leadline.interventions.base import Intervention
from leadline.priors import EmbeddingPrior

FAMILY = "soft_edits"
STEP = 1 / 8  # of the vocabulary's standard deviation: one size


@final
class SoftEdits(Intervention):
    """A latent is (n, hidden), whitened around the embeddings of the prompt's n tokens.

    embeddings: (n, hidden) of the deployed prompt
    """

    family = FAMILY
    first_offset = 0.0  # the solvers begin at the prompt itself

    def __init__(self, size: int, prior: EmbeddingPrior, embeddings: Tensor) -> None:
        self.size, self.tokens, self.shape = size, len(embeddings), tuple(embeddings.shape)
        self.prior = f"the deployed prompt, each embedding moved by N(0, ({size * STEP:g} sigma)^2)"
        self._embeddings, self._scale = embeddings.float(), size * STEP * prior.scale

    def edit(self, latents: Tensor) -> EmbeddingEdit:
        return EmbeddingEdit(self._embeddings + self._scale * latents, (self.tokens,) * len(latents))
