"""K7 without a model: 200 nulls through the choice of a restart and the scores that points are made of."""

from __future__ import annotations

import pytest
import scipy.stats
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


def test_at_most_five_percent_of_200_synthetic_nulls_are_reported():
    assert reported(0, "test") <= scipy.stats.binom.ppf(0.999, NULLS, 0.05)


def test_k16_judging_a_cell_on_the_items_it_was_chosen_on_is_seen():
    assert reported(0, "validation") > scipy.stats.binom.ppf(0.999, NULLS, 0.05)


def test_a_loss_that_is_no_number_is_never_the_best():
    points = [{"score": 0.0, "loss_bits": float("nan")}, {"score": 0.0, "loss_bits": 9.0}]
    assert best_restart(points) == 1
    with pytest.raises(ValueError):
        best_restart([])
