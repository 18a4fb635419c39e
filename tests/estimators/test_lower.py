"""LOWER: two counts in, one limit out, and how often it is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from known_answers import assert_nominal
from leadline.estimators import lower, monte_carlo
from leadline.information import clopper_pearson_upper


def simulated(cuts: np.ndarray, draws: int, rng: np.random.Generator) -> int:
    """Hits among pairs of a prior draw u and a uniform item; item i is right where u >= cuts[i]."""
    u, item = rng.standard_normal(draws), rng.integers(len(cuts), size=draws)
    return int((u >= cuts[item]).sum())


def test_it_is_the_limit_of_the_mean_score_less_the_threshold() -> None:
    found = lower(3, 1000, 0.9, prior="N(0, I)")
    assert (found.estimate, found.upper) == (None, None)
    assert math.isnan(found.stderr_bits)
    bits = found.lower
    assert bits is not None
    mean_limit = clopper_pearson_upper(3, 1000)
    assert bits.value == pytest.approx(math.log2(0.9 / mean_limit))
    assert dict(bits.ledger)["-log2 of the mean score"] == -math.log2(mean_limit)
    assert (bits.kind, bits.estimator, bits.prior) == ("certified lower", "LOWER", "N(0, I)")
    assert bits.low < bits.value < math.log2(0.9 / 0.003) < bits.high


def test_no_hit_reaches_as_far_as_the_draws() -> None:
    bits = lower(0, 1500, 1.0).lower
    assert bits is not None
    assert bits.value == pytest.approx(math.log2(1500 / 3), abs=0.01)
    assert bits.high == math.inf


def test_k15_where_an_item_is_the_behaviour_it_is_brute_force() -> None:
    found, brute = lower(7, 512, 1.0).lower, monte_carlo(7, 512).lower
    assert found is not None
    assert brute is not None
    assert (found.value, found.low, found.high) == (brute.value, brute.low, brute.high)


def test_one_item_a_draw_certifies_more_than_settled_draws() -> None:
    # 10,000 forward passes and nothing right: a draw of MC costs 5 items at tau = 0.9 of 40
    found, brute = lower(0, 10_000, 0.9).lower, monte_carlo(0, 2000).lower
    assert found is not None
    assert brute is not None
    assert found.value - brute.value == pytest.approx(math.log2(5 * 0.9), abs=0.01)


def test_a_common_behaviour_is_at_least_nothing_away() -> None:
    bits = lower(60, 64, 0.5).lower
    assert bits is not None
    assert (bits.value, bits.low) == (0.0, 0.0)
    assert math.fsum(paid for _, paid in bits.ledger) == pytest.approx(0.0)


@pytest.mark.parametrize("threshold", [0.0, 1.1, math.nan])
def test_a_threshold_is_a_score(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        lower(1, 64, threshold)


@pytest.mark.parametrize("spread", [0.0, 0.2, 1.0], ids=["one cut", "near", "far"])
def test_k1_the_limit_is_certified(spread: float) -> None:
    """40 items, tau = 0.9, the 36th easiest cut 6 bits out: D is 6 exactly, whatever the others are."""
    cuts = float(stats.norm.isf(2.0**-6)) + spread * (np.arange(40) - 35.0) / 40.0
    tau, mean_score = 36 / 40, float(stats.norm.sf(cuts).mean())
    rng = np.random.default_rng(2)
    found = [lower(simulated(cuts, 512, rng), 512, tau).lower for _ in range(1000)]
    values = [bits.value for bits in found if bits is not None]
    assert len(values) == 1000
    assert_nominal(value > 6.0 for value in values)
    # of the population value of the bound itself, where the limit is as sharp as a binomial count allows
    missed = [value > math.log2(tau / mean_score) for value in values]
    assert_nominal(missed)
    assert sum(missed) > 5
    ends = [bits.low <= math.log2(tau / mean_score) <= bits.high for bits in found if bits is not None]
    assert_nominal(not inside for inside in ends)
