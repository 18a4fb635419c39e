"""What a solution looks like from outside: the tokens nearest to it, and what it changes in the residual stream.

Descriptions, no measurements: neither says why a solution works. Takes plain tensors and knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NEAREST_TOKENS_WARNING = (
    "The nearest tokens of a soft prompt do not say what it does: prompts that solve one task can be found next to "
    "almost any text, with little loss (Khashabi and others, Prompt Waywardness, arXiv 2112.08348). Read as a text "
    "they mislead."
)


def nearest_tokens(embeddings: Tensor, table: Tensor, count: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """(K, count) indices, cosines and Euclidean distances of the table's rows nearest to each embedding, nearest first.

    embeddings (K, hidden) and table (V, hidden) in the same coordinates: nearest means by distance, so whitened and raw
    coordinates may differ in it. `count` is cut to V. Print NEAREST_TOKENS_WARNING wherever the result is shown.
    """
    # the plain formula: by way of a matrix product the distance of a near row is rounding only
    distances = torch.cdist(embeddings, table, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.topk(min(count, len(table)), largest=False)
    cosines = torch.nn.functional.cosine_similarity(embeddings[:, None], table[nearest.indices], dim=-1)
    return nearest.indices, cosines, nearest.values


@dataclass(frozen=True)
class Change:
    """What an edit did to the residual stream after one layer, mean over positions; NaN where there is no position.

    relative_norm: norm(with - without) / norm(without); inf where the stream was zero and is no longer
    cosine:        between the two; 0 where one of them is zero
    """

    relative_norm: float
    cosine: float


def stream_changes(without: Sequence[Tensor], edited: Sequence[Tensor]) -> list[Change]:
    """One Change a layer; both lists hold (positions, hidden), layer by layer, at the same target positions.

    Positions are those of the target: an edit that inserts tokens moves them, so the caller aligns the two.
    ValueError where the shapes do not match.
    """
    changes = []
    for layer, (before, after) in enumerate(zip(without, edited, strict=True)):
        if before.shape != after.shape:
            raise ValueError(f"layer {layer}: {tuple(before.shape)} without the edit, {tuple(after.shape)} with it")
        plain, changed = before.double(), after.double()
        moved, length = (changed - plain).norm(dim=-1), plain.norm(dim=-1)
        relative = torch.where(moved == 0, torch.zeros_like(moved), moved / length)
        cosine = torch.nn.functional.cosine_similarity(plain, changed, dim=-1)
        changes.append(Change(float(relative.mean()), float(cosine.mean())))
    return changes
