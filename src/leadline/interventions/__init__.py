"""Interventions: latents to edits. One family a file; `make` resolves a family's name once, at the edge."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from leadline.interventions.adapters import Lora, TinyLora
from leadline.interventions.base import Intervention
from leadline.interventions.conditional import Conditional
from leadline.interventions.prefix import Prefix
from leadline.interventions.soft_edits import SoftEdits
from leadline.interventions.soft_prompt import SoftPrompt
from leadline.interventions.soft_subspace import SoftSubspace
from leadline.interventions.steering import Steering
from leadline.interventions.vocab_mixture import VocabMixture
from leadline.priors import Priors

FAMILIES = (
    "soft_prompt", "vocab_mixture", "soft_subspace", "steering", "prefix", "lora", "tinylora",
    "conditional_soft_prompt", "soft_edits",
)  # fmt: skip


def make(family: str, size: int, priors: Priors, conditions: int = 0, prompt: Sequence[int] = ()) -> Intervention:
    """The intervention of that family and size, for these priors' model and a behaviour of so many conditions, with a
    deployed prompt of these tokens."""
    match family:
        case "soft_prompt":
            return SoftPrompt(size, priors.embedding)
        case "vocab_mixture":
            return VocabMixture(size, priors.embedding)
        case "soft_subspace":
            return SoftSubspace(size, priors.embedding)
        case "steering":
            return Steering(size, priors)
        case "prefix":
            return Prefix(size, priors)
        case "lora":
            return Lora(size, priors)
        case "tinylora":
            return TinyLora(size, priors)
        case "conditional_soft_prompt":
            return Conditional(SoftPrompt(size, priors.embedding), conditions)
        case "soft_edits":
            tokens = torch.tensor([list(prompt)], dtype=torch.long, device=priors.model.device)
            return SoftEdits(size, priors.embedding, priors.model.embed(tokens)[0])
    raise ValueError(f"no family {family!r}; there are {FAMILIES}")
