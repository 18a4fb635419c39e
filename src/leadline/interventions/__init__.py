"""Interventions: latents to edits. One family a file; `make` resolves a family's name once, at the edge."""

from __future__ import annotations

from leadline.interventions.base import Intervention
from leadline.interventions.soft_prompt import SoftPrompt
from leadline.interventions.soft_subspace import SoftSubspace
from leadline.priors import EmbeddingPrior

FAMILIES = ("soft_prompt", "soft_subspace")


def make(family: str, size: int, prior: EmbeddingPrior) -> Intervention:
    """The intervention of that family and size."""
    match family:
        case "soft_prompt":
            return SoftPrompt(size, prior)
        case "soft_subspace":
            return SoftSubspace(size, prior)
    raise ValueError(f"no family {family!r}; there are {FAMILIES}")
