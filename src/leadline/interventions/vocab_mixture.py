"""vocab_mixture: soft tokens under a prior that text lives in as well: a text is drawn from the model's own
distribution at the slot, and its embeddings are moved by Gaussian noise. Which texts are near, it does not know.

    pi = sum over texts t of p(t) N(e(t), (SPREAD sigma)^2)                    one term is one component of the mixture

One intervention here is one component. Where q is measured against p(t) N(e(t), ...), which is at most pi, every bound
holds under pi, and -log2 p(t) is paid in it: which component was taken is free, as any choice of q is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from leadline.edits import EmbeddingEdit
from leadline.interventions.base import Intervention
from leadline.priors import EmbeddingPrior, Priors

FAMILY = "vocab_mixture"
SPREAD = 0.5  # of the vocabulary's standard deviation: what a text does, it still does within it (docs/decisions.md)


@final
class VocabMixture(Intervention):
    """The component around one text; a latent is (n, hidden), whitened around the text's embeddings.

    embeddings: (n, hidden) of the text;  component_bits: -log2 p(t)
    Without embeddings, of draws from the whole mixture: a latent is the embeddings themselves.
    """

    family = FAMILY
    first_offset, first_width = 0.0, 1.0  # q starts as the component itself

    def __init__(
        self, size: int, prior: EmbeddingPrior, embeddings: Tensor | None = None, component_bits: float = 0.0
    ) -> None:
        self.size = self.tokens = size
        self.shape = (size, len(prior.mean))
        self.prior = f"the model's own text at the slot, each embedding moved by N(0, ({SPREAD} sigma)^2)"
        self.component_bits = component_bits
        self._embeddings, self._scale = embeddings, SPREAD * prior.scale

    def edit(self, latents: Tensor) -> EmbeddingEdit:
        values = latents if self._embeddings is None else self.around(self._embeddings, latents)
        return EmbeddingEdit(values, (self.tokens,) * len(latents))

    def around(self, embeddings: Tensor, noise: Tensor) -> Tensor:
        """(..., n, hidden) embeddings of texts, moved by so many standard deviations of a component."""
        return embeddings.float() + self._scale * noise


def around(priors: Priors, tokens: Sequence[int], bits: float) -> VocabMixture:
    """The component around the text of these tokens, of that surprisal."""
    embeddings = priors.model.embed(torch.tensor([tokens], device=priors.model.device))[0]
    return VocabMixture(len(tokens), priors.embedding, embeddings, bits)


def anchor_name(task: str, size: int, seed: int) -> str:
    """Under which the text of a restart stands in `extra.anchors` of spec.json."""
    return f"{task}/{FAMILY}/{size}/{seed}"
