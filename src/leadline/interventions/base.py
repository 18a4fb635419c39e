"""What every intervention is: a latent of some shape with the prior N(0, I), and a map from latents to an edit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from leadline.edits import Edit, join


class Writes(Protocol):
    """Whatever turns (rows, ...) numbers into an edit of as many rows: an intervention, or texts given as tokens."""

    def edit(self, latents: Tensor) -> Edit: ...

    def given(self, conditions: Sequence[tuple[float, ...]]) -> Writes: ...


class Intervention(ABC):
    """One family at one size. Its prior over latents is N(0, I) in whitened coordinates.

    family: its name;  size: tokens, dimensions, sites or rank;  tokens: positions it takes in the model's window
    shape:  of one latent;  prior: the prior in words
    component_bits: -log2 of the weight of this component, where the prior is a mixture of N(0, I) and others
    first_offset, first_width: standard deviation of where a solver starts, and width of q there, in the prior's units
    """

    family: str
    size: int
    tokens: int
    shape: tuple[int, ...]
    prior: str
    component_bits: float = 0.0
    first_offset: float = 0.1  # tokens differ from the start, and no restart begins far out (benchmarks)
    first_width: float = 0.15

    @abstractmethod
    def edit(self, latents: Tensor) -> Edit:
        """(rows, *shape) latents to the edit of as many rows, differentiable."""

    def given(self, conditions: Sequence[tuple[float, ...]]) -> Intervention:
        """This intervention for rows that come with these numbers, as many for each; itself where it has no use for
        them."""
        return self

    @property
    def dimensions(self) -> int:
        """Free numbers in one latent."""
        return math.prod(self.shape)


def edit(
    interventions: Sequence[Writes], latents: Sequence[Tensor], conditions: Sequence[tuple[float, ...]] = ()
) -> Edit:
    """One edit for rows of different families and sizes: latents[i] is (rows_i, *shape_i) under interventions[i]. Their
    edits must be of one kind.

    conditions: what each row comes with, all rows one after the other; a family that needs none does without
    """
    parts, start = [], 0
    for intervention, latent in zip(interventions, latents, strict=True):
        stop = start + len(latent)
        parts.append(intervention.given(conditions[start:stop]).edit(latent))
        start = stop
    return join(parts)
