"""What every intervention is: a latent of some shape with the prior N(0, I), and a map from latents to embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from leadline.edits import EmbeddingEdit


class Intervention(ABC):
    """One family at one size. Its prior over latents is N(0, I) in whitened coordinates.

    family: its name;  size: tokens or dimensions;  tokens: how many embeddings it writes
    shape:  of one latent;  prior: the prior in words
    """

    family: str
    size: int
    tokens: int
    shape: tuple[int, ...]
    prior: str

    @abstractmethod
    def embeddings(self, latents: Tensor) -> Tensor:
        """(rows, *shape) latents to (rows, tokens, hidden) embeddings, differentiable."""

    @property
    def dimensions(self) -> int:
        """Free numbers in one latent."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count


def edit(interventions: Sequence[Intervention], latents: Sequence[Tensor]) -> EmbeddingEdit:
    """One edit for rows of different families and sizes: latents[i] is (rows_i, *shape_i) under interventions[i]."""
    most = max(intervention.tokens for intervention in interventions)
    values, lengths = [], []
    for intervention, latent in zip(interventions, latents, strict=True):
        embeddings = intervention.embeddings(latent)
        values.append(torch.nn.functional.pad(embeddings, (0, 0, 0, most - intervention.tokens)))
        lengths += [intervention.tokens] * len(latent)
    return EmbeddingEdit(torch.cat(values), tuple(lengths))
