"""The narrow waist: what an intervention does to a forward pass, as plain tensors.

An edit says *what* is written and *for which row*; the engine knows where the slot of each row lies. Nothing here
knows models, priors, behaviours or how the tensors were found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EmbeddingEdit:
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

    def rows(self, start: int, stop: int) -> EmbeddingEdit:
        """The same edit for rows start to stop only."""
        return EmbeddingEdit(self.values[start:stop], self.lengths[start:stop])


def no_edit(rows: int, hidden: int, dtype: torch.dtype, device: torch.device) -> EmbeddingEdit:
    """The null intervention for so many rows."""
    return EmbeddingEdit(torch.zeros(rows, 0, hidden, dtype=dtype, device=device), (0,) * rows)
