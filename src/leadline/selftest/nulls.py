"""Nulls without a model: cells whose items are right by chance alone, through the choice of a restart and the scores
that points are made of (docs/measurement.md, K7).
"""

from __future__ import annotations

import scipy.stats  # type: ignore[import-untyped]
import torch

from leadline import rows
from leadline.plan import best_restart

NULLS, RESTARTS, ITEMS, CHANCE = 200, 12, 40, 1 / 8


def reported(seed: int, judged_on: str) -> int:
    """How many nulls look better than chance at 5%: cells whose items are right by chance alone, the best of them
    chosen on validation items and judged on test items (or on the same ones, which is the mistake)."""
    generator = torch.Generator().manual_seed(seed)
    count = 0
    for _ in range(NULLS):
        points = {
            split: [point(torch.rand(ITEMS, generator=generator) < CHANCE, split) for _ in range(RESTARTS)]
            for split in ("validation", "test")
        }
        chosen = best_restart(points["validation"])
        right = round(points[judged_on][chosen]["score"] * ITEMS)
        count += scipy.stats.binom.sf(right - 1, ITEMS, CHANCE) <= 0.05
    return count


def point(right: torch.Tensor, split: str) -> rows.Point:
    margins = torch.where(right, 1.0, -1.0)
    return rows.curve_point({"beta": None, "prior": "none"}, 0.9, split, 1.0 - margins, margins)
