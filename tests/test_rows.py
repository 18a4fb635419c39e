"""Rows from scores: means, and the gain over size 0 that is paired item by item."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

from leadline.rows import curve_point

ABOUT = {"family": "soft_prompt", "size": 1}


def test_the_gain_is_paired_on_items_and_draws_of_an_item_are_averaged_first():
    """Items hundreds of bits apart that gain 2 each, give or take: the pairs see it, two intervals would not."""
    null = [10.0, 300.0, 80.0, 500.0]
    gains = torch.tensor([2.0, 2.5, 1.5, 2.0], dtype=torch.float64)
    drawn = torch.stack([torch.tensor(null) - gains - 1.0, torch.tensor(null) - gains + 1.0])
    row = curve_point(ABOUT, 0.9, "test", drawn, torch.ones(2, 4), null)
    known = scipy.stats.t.interval(0.95, 3, loc=2.0, scale=gains.std().item() / 2)
    assert row["gain_bits"] == pytest.approx(2.0)
    assert (row["gain_low"], row["gain_high"]) == pytest.approx(known)
    assert row["loss_high"] - row["loss_low"] > 100 * (row["gain_high"] - row["gain_low"])


@pytest.mark.parametrize("null", [(), [3.0, math.nan], [3.0, math.inf]])
def test_without_a_finite_size_0_there_is_no_gain(null):
    row = curve_point(ABOUT, 0.9, "test", torch.tensor([1.0, 2.0]), torch.ones(2), null)
    assert row["gain_bits"] is None
    assert row["loss_bits"] == 1.5


def test_a_loss_alone_has_no_score_and_reaches_nothing():
    row = curve_point(ABOUT, None, "test", torch.tensor([1.0, 2.0]), torch.ones(2), [3.0, 3.5])
    assert (row["score"], row["score_low"], row["outcome"]) == (None, None, "trained")
    assert row["gain_bits"] == pytest.approx(1.75)
    assert curve_point(ABOUT, None, "test", torch.tensor([math.nan, 2.0]), torch.ones(2))["outcome"] == "non-finite"


def test_one_item_has_no_interval():
    assert curve_point(ABOUT, 0.9, "test", torch.tensor([1.0]), torch.ones(1), [3.0])["gain_bits"] is None
