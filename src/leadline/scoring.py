"""Scores, and the level function: how far a set of items is from counting as reached. Pure functions of margins.

`margin` of an item: the smallest lead of a target token over its best rival, end of reply included; greedy decoding
writes the target exactly if and only if it is positive. Source: docs/measurement.md section 2, "Level function".
"""

from __future__ import annotations

import math

from torch import Tensor


def needed(threshold: float, items: int) -> int:
    """How many of the items must be right for a score of at least `threshold`: ceil(threshold * items)."""
    # 0.9 * 40 is 36.000000000000004 in floating point: without rounding first, 37 items would be asked for.
    return math.ceil(round(threshold * items, 9))


def hits(margins: Tensor) -> Tensor:
    """True where an item is replied exactly. Any shape. A margin of NaN is a miss."""
    return margins > 0


def level(margins: Tensor, threshold: float) -> Tensor:
    """phi: (..., items) margins -> (...) the k-th largest of them, k = needed(threshold, items). The score reaches the
    threshold if and only if it is positive."""
    items = margins.shape[-1]
    order = margins.nan_to_num(nan=float("-inf")).sort(-1, descending=True).values
    return order[..., needed(threshold, items) - 1] if items else margins.new_full(margins.shape[:-1], float("-inf"))
