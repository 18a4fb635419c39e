"""COND on draws made by hand: what it must reproduce, what it must refuse, and that it is never looser than KL."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from leadline.estimators import cond, kl_limit_bits, monte_carlo
from leadline.estimators.cond import degrees_of_freedom, hit_confidence, promised_bits
from leadline.information import clopper_pearson_lower, gaussian_kl_bits, log_ratio_bits


def drawn(mean: float, scale: float, cut: float, draws: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, float]:
    """Log ratios, hits of {z >= cut} and KL of one-dimensional draws of N(mean, scale^2)."""
    z = mean + scale * np.random.default_rng(seed).standard_normal((draws, 1))
    location, width = gaussian_kl_bits(mean, scale)
    return log_ratio_bits(z, mean, scale), z[:, 0] >= cut, float(location + width)


def test_all_hits_give_the_kl_to_the_last_digit() -> None:
    ratio, hit, kl_bits = drawn(6.0, 0.3, -100.0, 64)
    found = cond(ratio, hit, kl_bits)
    assert found.estimate is not None
    assert found.upper is not None
    assert found.estimate.value == kl_bits
    # the limit pays for a miss that was not seen: p's limit, and at most sd(R) sqrt((1 - p) / p) of the mean
    p_low = clopper_pearson_lower(64, 64, 0.975)
    unseen = math.sqrt(np.mean((ratio - kl_bits) ** 2) * (1 - p_low) / p_low)
    assert found.upper.value == pytest.approx(-math.log2(p_low) + kl_bits + unseen)
    assert found.estimate.low < kl_bits < found.estimate.high


def test_q_equal_to_the_prior_is_brute_force() -> None:
    hit = np.arange(128) < 20
    found, brute = cond(np.zeros(128), hit, 0.0, prior="N(0, I)"), monte_carlo(20, 128)
    assert found.upper is not None
    assert brute.upper is not None
    assert found.estimate is not None
    assert brute.estimate is not None
    assert found.upper.value == brute.upper.value
    assert found.estimate.value == brute.estimate.value
    assert found.stderr_bits == brute.stderr_bits
    assert found.lower is None
    assert found.upper.ledger == (("-log2 p", brute.upper.value), ("conditional log ratio", 0.0))
    assert (found.upper.estimator, found.upper.prior) == ("COND", "N(0, I)")


def test_the_ledger_splits_delta() -> None:
    ratio, hit, kl_bits = drawn(3.0, 0.5, 3.0, 256)
    upper = cond(ratio, hit, kl_bits).upper
    assert upper is not None
    paid = dict(upper.ledger)
    assert paid["-log2 p"] == -math.log2(clopper_pearson_lower(int(hit.sum()), 256, 0.975))
    assert upper.value == pytest.approx(sum(paid.values()))
    assert hit_confidence(kl_bits, 0.9) == pytest.approx(0.95)
    assert hit_confidence(0.0, 0.9) == 0.9


def test_control_variate_halves_the_error_where_most_draws_hit() -> None:
    mean, scale = np.full(64, 0.6), np.full(64, 0.9)
    kl_bits = float(sum(part.sum() for part in gaussian_kl_bits(mean, scale)))
    estimates, plain = [], []
    for seed in range(200):
        z = mean + scale * np.random.default_rng(seed).standard_normal((128, 64))
        ratio, hit = log_ratio_bits(z, mean, scale), z[:, 0] >= -0.3
        found = cond(ratio, hit, kl_bits).estimate
        assert found is not None
        estimates.append(found.value)
        plain.append(-math.log2(hit.mean()) + ratio[hit].mean())
    assert np.mean(estimates) == pytest.approx(np.mean(plain), abs=0.2)
    assert np.std(estimates) < 0.6 * np.std(plain)


def test_few_hits_fall_back_on_the_spread_of_all_draws() -> None:
    ratio, hit, kl_bits = drawn(3.0, 0.5, 4.1, 128, seed=3)
    hits = int(hit.sum())
    assert 1 <= hits < 5
    found = cond(ratio, hit, kl_bits)
    assert found.upper is not None
    assert found.estimate is not None
    p_low = clopper_pearson_lower(hits, 128, 0.975)
    spread = math.sqrt(np.mean((ratio - kl_bits) ** 2) * (1 - p_low) / p_low)
    assert found.upper.value == pytest.approx(-math.log2(p_low) + kl_bits + spread)
    # even so it stays below what KL says of the same draws
    assert found.upper.value < kl_limit_bits(p_low, kl_bits)
    assert found.estimate.low < found.estimate.value < found.estimate.high
    assert [degrees_of_freedom(h, 128) for h in (2, 20, 64, 120, 127)] == [4, 19, 63, 7, 4]


def test_no_hit_says_nothing() -> None:
    ratio, hit, kl_bits = drawn(3.0, 0.5, 99.0, 64)
    found = cond(ratio, hit, kl_bits)
    assert (found.estimate, found.upper, found.lower) == (None, None, None)
    assert math.isnan(found.stderr_bits)


def test_a_constant_ratio_needs_no_regression() -> None:
    # q uniform on a set of prior mass 1/8: the ratio is 3 bits wherever q goes
    found = cond(np.full(64, 3.0), np.arange(64) < 32, 3.0)
    assert found.estimate is not None
    assert found.estimate.value == pytest.approx(4.0)


def test_what_it_refuses() -> None:
    ratio, hit, kl_bits = drawn(3.0, 0.5, 3.0, 64)
    with pytest.raises(ValueError, match="at least 64"):
        cond(ratio[:63], hit[:63], kl_bits)
    with pytest.raises(ValueError, match="shapes"):
        cond(ratio, hit[:-1], kl_bits)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            cond(ratio, hit, wrong)
    with pytest.raises(ValueError, match="finite"):
        cond(np.where(hit, math.nan, ratio), hit, kl_bits)
    with pytest.raises(ValueError, match="q = pi"):
        cond(ratio - ratio.mean(), hit, 0.0)


def test_ratios_that_do_not_belong_to_the_kl_are_refused() -> None:
    ratio, hit, kl_bits = drawn(6.0, 0.3, 6.0, 256)
    at_mean = np.full(256, float(log_ratio_bits(np.array([6.0]), 6.0, 0.3)))
    for wrong in (ratio * math.log(2.0), ratio + math.log2(0.3), at_mean):
        with pytest.raises(ValueError, match="not of the same q"):
            cond(wrong, hit, kl_bits)


@pytest.mark.parametrize("cut", [0.5, 3.0, 7.1])
@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 1.8])
def test_population_value_lies_between_the_truth_and_the_kl_bound(cut: float, scale: float) -> None:
    for p in (0.001, 0.05, 0.15, 0.5, 0.9, 0.999):
        edge = stats.norm.isf(p)
        mean = cut - scale * edge
        hazard = stats.norm.pdf(edge) / p
        mean_nats = (mean**2 + 2 * mean * scale * hazard + (scale**2 - 1) * (1 + edge * hazard)) / 2 - math.log(scale)
        value = -math.log2(p) + mean_nats / math.log(2.0)
        kl_bits = float(sum(gaussian_kl_bits(mean, scale)))
        assert -stats.norm.logsf(cut) / math.log(2.0) <= value + 1e-9
        assert value <= kl_limit_bits(p, kl_bits) + 1e-6


@pytest.mark.parametrize("cut", [3.4, 3.0, 2.6])
def test_a_promise_of_few_draws_is_about_what_many_will_say(cut: float) -> None:
    """Medians over 40 seeds, 32 draws and 128: hits from a fifth to four fifths."""
    promised = [promised_bits(*drawn(3.0, 0.5, cut, 32, seed), 128) for seed in range(40)]
    found = [cond(*drawn(3.0, 0.5, cut, 128, 100 + seed)).upper for seed in range(40)]
    said = np.median([upper.value for upper in found if upper is not None])
    assert abs(float(np.median(promised)) - said) < 0.8


def test_a_promise_knows_that_few_hits_will_certify_little() -> None:
    """In many dimensions log ratios spread over many bits. A q that seldom hits, and one that often does and is 30 bits
    dearer: with few hits COND falls back on a limit that pays for that spread, and the promise has to say so."""
    rng = np.random.default_rng(0)
    seldom, often = 250.0 + 14.0 * rng.standard_normal(32), 280.0 + 14.0 * rng.standard_normal(32)
    few, many = np.arange(32) < 4, np.arange(32) < 20
    assert promised_bits(seldom, few, 250.0, 128) > 300.0 > promised_bits(often, many, 280.0, 128)
    # with enough draws the seldom one is promised what it hits at
    assert promised_bits(seldom, few, 250.0, 4096) < promised_bits(often, many, 280.0, 4096)
    assert promised_bits(seldom, np.zeros(32, bool), 250.0, 128) == math.inf
    assert promised_bits(np.zeros(32), many, 0.0, 128) == pytest.approx(-math.log2(clopper_pearson_lower(80, 128)))
