"""The narrow waist: what an intervention does to a forward pass, as plain tensors.

An edit says *what* is written and *for which row*; the engine knows where the slot of each row lies, and how each kind
is carried out. Nothing here knows models, priors, behaviours or how the tensors were found.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor


class Edit(ABC):
    """What is changed, for every row of a batch. All rows of one batch have edits of one kind.

    lengths: how many tokens are inserted at each row's slot
    taken:   positions of the window that it takes beside them, in every row
    """

    lengths: tuple[int, ...]
    taken: int = 0

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is written, each (rows, ...)."""

    @abstractmethod
    def having(self, tensors: Sequence[Tensor]) -> Self:
        """The same edit with these in place of `tensors`, of as many rows."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> Self:
        """The same edit for these rows only, in this order."""

    @classmethod
    @abstractmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One edit for the rows of all parts, one after the other. Raises ValueError where they do not fit together."""


def join(parts: Sequence[Edit]) -> Edit:
    """One edit for the rows of all parts; they must be of one kind."""
    kinds = {type(part) for part in parts}
    if len(kinds) != 1:
        raise ValueError(f"one batch has edits of one kind, not of {sorted(kind.__name__ for kind in kinds)}")
    return kinds.pop().joined(parts)


@final
@dataclass(frozen=True)
class EmbeddingEdit(Edit):
    """Free input embeddings, inserted at the slot of every row.

    values:  (rows, most tokens, hidden) float; row r uses its first `lengths[r]` tokens, the rest is ignored
    lengths: how many tokens each row inserts; 0 leaves the row as it is
    """

    values: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.shape[0] != len(self.lengths):
            raise ValueError(f"values {tuple(self.values.shape)} do not fit {len(self.lengths)} rows")
        if any(length < 0 or length > self.values.shape[1] for length in self.lengths):
            raise ValueError(f"lengths {self.lengths} leave the {self.values.shape[1]} tokens that values hold")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def having(self, tensors: Sequence[Tensor]) -> EmbeddingEdit:
        return EmbeddingEdit(tensors[0], self.lengths)

    def select(self, rows: Sequence[int]) -> EmbeddingEdit:
        return EmbeddingEdit(self.values[list(rows)], tuple(self.lengths[row] for row in rows))

    @classmethod
    def joined(cls, parts: Sequence[EmbeddingEdit]) -> EmbeddingEdit:
        most = max(part.values.shape[1] for part in parts)
        padded = [torch.nn.functional.pad(part.values, (0, 0, 0, most - part.values.shape[1])) for part in parts]
        return EmbeddingEdit(torch.cat(padded), tuple(length for part in parts for length in part.lengths))


def no_edit(rows: int, hidden: int, dtype: torch.dtype, device: torch.device) -> EmbeddingEdit:
    """The null intervention for so many rows."""
    return EmbeddingEdit(torch.zeros(rows, 0, hidden, dtype=dtype, device=device), (0,) * rows)


@final
@dataclass(frozen=True)
class ResidualEdit(Edit):
    """Vectors added to what leaves some blocks, at every position from the slot on, the last one of the prompt always
    among them.

    values: (rows, sites, hidden) float;  sites: numbers of the blocks, from 0
    """

    values: Tensor
    sites: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.shape[1] != len(self.sites):
            raise ValueError(f"values {tuple(self.values.shape)} do not fit {len(self.sites)} sites")

    @property
    def lengths(self) -> tuple[int, ...]:  # type: ignore[override]
        return (0,) * len(self.values)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def having(self, tensors: Sequence[Tensor]) -> ResidualEdit:
        return ResidualEdit(tensors[0], self.sites)

    def select(self, rows: Sequence[int]) -> ResidualEdit:
        return ResidualEdit(self.values[list(rows)], self.sites)

    @classmethod
    def joined(cls, parts: Sequence[ResidualEdit]) -> ResidualEdit:
        """Parts with other sites add nothing where they have none."""
        sites = tuple(sorted({site for part in parts for site in part.sites}))
        values = []
        for part in parts:
            spread = part.values.new_zeros(len(part.values), len(sites), part.values.shape[2])
            places = torch.tensor([sites.index(site) for site in part.sites], device=spread.device)
            values.append(spread.index_copy(1, places, part.values))
        return ResidualEdit(torch.cat(values), sites)


@final
@dataclass(frozen=True)
class KeyValueEdit(Edit):
    """Keys and values of tokens that nobody wrote, in every block, behind what all contexts start with. Every row has
    as many, since attention would have to be masked otherwise.

    keys, values: (rows, blocks, heads, tokens, head size) float
    """

    keys: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        if self.keys.ndim != 5 or self.keys.shape[:4] != self.values.shape[:4]:
            raise ValueError(f"keys {tuple(self.keys.shape)} do not fit values {tuple(self.values.shape)}")

    @property
    def lengths(self) -> tuple[int, ...]:  # type: ignore[override]
        return (0,) * len(self.keys)

    @property
    def taken(self) -> int:  # type: ignore[override]
        return self.keys.shape[3]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.keys, self.values)

    def having(self, tensors: Sequence[Tensor]) -> KeyValueEdit:
        return KeyValueEdit(*tensors)

    def select(self, rows: Sequence[int]) -> KeyValueEdit:
        return KeyValueEdit(self.keys[list(rows)], self.values[list(rows)])

    @classmethod
    def joined(cls, parts: Sequence[KeyValueEdit]) -> KeyValueEdit:
        if len({part.keys.shape[1:] for part in parts}) != 1:
            raise ValueError("rows of one batch have keys and values of as many tokens")
        return KeyValueEdit(torch.cat([p.keys for p in parts]), torch.cat([p.values for p in parts]))


@final
@dataclass(frozen=True)
class WeightEdit(Edit):
    """A change of low rank to linear maps, another one in every row: W x becomes W x + up (down x).

    down: module name -> (rows, rank, inputs);  up: module name -> (rows, outputs, rank)
    """

    down: dict[str, Tensor]
    up: dict[str, Tensor]

    def __post_init__(self) -> None:
        if self.down.keys() != self.up.keys() or not self.down:
            raise ValueError("every module that is changed needs a factor on both sides")

    @property
    def lengths(self) -> tuple[int, ...]:  # type: ignore[override]
        return (0,) * len(next(iter(self.down.values())))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.down.values(), *(self.up[name] for name in self.down))

    def having(self, tensors: Sequence[Tensor]) -> WeightEdit:
        down, up = tensors[: len(self.down)], tensors[len(self.down) :]
        return WeightEdit(dict(zip(self.down, down, strict=True)), dict(zip(self.down, up, strict=True)))

    def select(self, rows: Sequence[int]) -> WeightEdit:
        chosen = list(rows)
        return WeightEdit(
            {name: factor[chosen] for name, factor in self.down.items()},
            {name: factor[chosen] for name, factor in self.up.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[WeightEdit]) -> WeightEdit:
        if len({tuple((n, f.shape[1:]) for n, f in part.down.items()) for part in parts}) != 1:
            raise ValueError("rows of one batch change the same modules by the same rank")
        return WeightEdit(
            {name: torch.cat([part.down[name] for part in parts]) for name in parts[0].down},
            {name: torch.cat([part.up[name] for part in parts]) for name in parts[0].up},
        )
