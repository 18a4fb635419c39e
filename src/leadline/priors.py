"""What latents are drawn from before anything is known of the behaviour, and what they mean as embeddings.

Every family here works in whitened coordinates: its latent z has the prior N(0, I), and the map to embeddings carries
the scale. KL, log ratios and draws are then the same few lines for all of them (`information`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from leadline.model import FrozenModel


@dataclass(frozen=True)
class EmbeddingPrior:
    """embedding = mean + scale * u, u ~ N(0, I), per dimension of the vocabulary's embeddings as the first block sees
    them (docs/measurement.md section 3).

    mean, scale: (hidden,) float32
    """

    mean: Tensor
    scale: Tensor
    name: str = "N(mu, sigma^2) of the vocabulary, per dimension"

    def embeddings(self, whitened: Tensor) -> Tensor:
        """(..., hidden) whitened coordinates to (..., hidden) embeddings."""
        return self.mean + self.scale * whitened


def embedding_prior(model: FrozenModel) -> EmbeddingPrior:
    """The prior of a model's vocabulary."""
    mean, scale = model.embedding_statistics()
    return EmbeddingPrior(mean, scale)


def normal(shape: tuple[int, ...], *labels: object) -> Tensor:
    """Standard normal float32 numbers that depend on the labels and on nothing else: no state, so that a resumed run
    draws what the uninterrupted one would have drawn."""
    return torch.randn(shape, generator=generator(*labels))


def generator(*labels: object) -> torch.Generator:
    """A CPU generator seeded by a hash of the labels."""
    return torch.Generator().manual_seed(seed_of(*labels))


def seed_of(*labels: object) -> int:
    """A 63-bit seed from labels, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(labels).encode()).digest()[:8], "big") >> 1
