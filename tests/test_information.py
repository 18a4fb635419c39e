"""Bits against closed forms, against other implementations, and at the ends where floats give out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from leadline import information as info
from leadline.information import Bits

SHARES = st.floats(1e-6, 1.0 - 1e-6)


def test_entropy_and_divergence_of_coins() -> None:
    assert info.h2(0.5) == 1.0
    assert info.h2(0.0) == info.h2(1.0) == 0.0
    assert info.h2(0.11) == pytest.approx(0.499916, abs=1e-6)
    assert info.d2(0.3, 0.3) == 0.0
    assert info.d2(1.0, 0.125) == pytest.approx(3.0)
    assert info.d2(0.0, 0.75) == pytest.approx(2.0)
    assert info.d2(0.5, 0.0) == info.d2(0.5, 1.0) == math.inf
    # 1 - P is below the last digit of 1: the naive formula gives 0 here
    assert info.d2(0.0, 1e-18) == pytest.approx(1e-18 / math.log(2.0))


@given(SHARES, SHARES)
@settings(deadline=None)
def test_d2_is_the_definition_and_never_negative(p: float, big_p: float) -> None:
    plain = p * math.log2(p / big_p) + (1 - p) * math.log2((1 - p) / (1 - big_p))
    assert info.d2(p, big_p) >= 0.0
    assert info.d2(p, big_p) == pytest.approx(max(plain, 0.0), abs=1e-9)
    assert info.d2_at_distance(p, -math.log2(big_p)) == pytest.approx(max(plain, 0.0), abs=1e-6)


def test_d2_at_distances_beyond_floats() -> None:
    # P = 2^-5000 is 0 as a float; d2 = p D - h2(p) there
    assert info.d2_at_distance(0.25, 5000.0) == pytest.approx(1250.0 - info.h2(0.25), rel=1e-12)
    assert info.d2_at_distance(1.0, 5000.0) == 5000.0
    assert info.d2_at_distance(0.5, 0.0) == math.inf


def test_surprisal() -> None:
    assert info.surprisal(0.125) == 3.0
    assert info.surprisal(0.0) == math.inf
    with pytest.raises(ValueError, match="probability"):
        info.surprisal(1.5)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (1.3, 0.4), (-2.0, 2.5), (0.0, 1.0 + 1e-9)])
def test_gaussian_kl_against_quadrature(mean: float, scale: float) -> None:
    location, width = info.gaussian_kl_bits(mean, scale)
    q, pi = stats.norm(mean, scale), stats.norm()

    def density(u: float) -> float:
        return float(q.pdf(u) * (q.logpdf(u) - pi.logpdf(u)) / math.log(2.0))

    value, _ = integrate.quad(density, mean - 12 * scale, mean + 12 * scale, epsabs=1e-12)
    assert float(location + width) == pytest.approx(value, abs=1e-7)
    assert float(location) == pytest.approx(mean**2 / 2 / math.log(2.0))
    assert float(width) >= 0.0


def test_log_ratio_is_the_ratio_of_densities() -> None:
    rng = np.random.default_rng(0)
    mean, scale = rng.normal(size=7), rng.uniform(0.1, 2.0, size=7)
    z = rng.normal(size=(3, 5, 7))
    expected = (stats.norm.logpdf(z, mean, scale) - stats.norm.logpdf(z)).sum(-1) / math.log(2.0)
    assert info.log_ratio_bits(z, mean, scale) == pytest.approx(expected, rel=1e-12)
    # a scalar scale counts once a coordinate, and float32 draws are taken as they are
    expected = (stats.norm.logpdf(z, 0.5, 0.3) - stats.norm.logpdf(z)).sum(-1) / math.log(2.0)
    assert info.log_ratio_bits(z, 0.5, 0.3) == pytest.approx(expected, rel=1e-12)
    assert info.log_ratio_bits(z.astype(np.float32), mean, scale).dtype == np.float64


def test_log_ratio_averages_to_the_kl() -> None:
    rng = np.random.default_rng(1)
    mean, scale = rng.normal(size=16), rng.uniform(0.2, 1.2, size=16)
    z = mean + scale * rng.standard_normal((40_000, 16))
    ratio = info.log_ratio_bits(z, mean, scale)
    location, width = info.gaussian_kl_bits(mean, scale)
    assert ratio.mean() == pytest.approx(float((location + width).sum()), abs=4 * ratio.std() / 200)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="standard deviation"):
        info.gaussian_kl_bits(0.0, scale)
    with pytest.raises(ValueError, match="standard deviation"):
        info.log_ratio_bits(np.zeros((2, 3)), 0.0, scale)


@pytest.mark.parametrize(("hits", "draws"), [(0, 64), (1, 64), (13, 64), (64, 64), (7, 100_000)])
def test_binomial_limits_against_scipy(hits: int, draws: int) -> None:
    exact = stats.binomtest(hits, draws).proportion_ci(0.90, "exact")
    assert info.clopper_pearson_lower(hits, draws, 0.95) == pytest.approx(exact.low, abs=1e-12)
    assert info.clopper_pearson_upper(hits, draws, 0.95) == pytest.approx(exact.high, abs=1e-12)
    wilson = stats.binomtest(hits, draws).proportion_ci(0.95, "wilson")
    assert info.wilson_interval(hits, draws) == pytest.approx((wilson.low, wilson.high), abs=1e-12)


def test_no_hit_in_n_draws_certifies_log2_of_a_third_of_n() -> None:
    assert info.surprisal(info.clopper_pearson_upper(0, 3000)) == pytest.approx(math.log2(1000), abs=0.01)


@pytest.mark.parametrize(("hits", "draws", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (1, 5, 1.0)])
def test_impossible_counts_are_refused(hits: int, draws: int, confidence: float) -> None:
    for limit in (info.clopper_pearson_lower, info.clopper_pearson_upper, info.wilson_interval):
        with pytest.raises(ValueError):
            limit(hits, draws, confidence)


def test_student_interval() -> None:
    values = [3.0, 5.0, 4.0]
    low, high = stats.t.interval(0.95, 2, loc=4.0, scale=1.0 / math.sqrt(3.0))
    assert info.student_interval(values) == pytest.approx((4.0, low, high))
    assert info.student_interval([2.0]) == (2.0, -math.inf, math.inf)
    with pytest.raises(ValueError, match="no values"):
        info.student_interval([])
    assert info.student_quantile(0.975, math.inf) == pytest.approx(1.959964, abs=1e-6)


def test_size_weights_follow_the_doublings() -> None:
    weights = info.size_weights([1, 2, 4, 8])
    assert sum(weights.values()) == pytest.approx(1.0)
    assert [weights[1] / weights[k] for k in (2, 4, 8)] == pytest.approx([3.0, 6.0, 10.0])
    # between two powers of two a size counts as the larger one, and a run of one size chooses nothing
    assert info.size_weights([3, 4])[3] == pytest.approx(0.5)
    assert info.size_weights([16]) == {16: 1.0}
    for wrong in ([], [0, 1], [2, 2]):
        with pytest.raises(ValueError, match="distinct"):
            info.size_weights(wrong)


def test_family_weights() -> None:
    both = {"null": 0.5, "soft_prompt": 0.25, "prefill": 0.25}
    assert info.family_weights(["soft_prompt", "prefill", "null"]) == both
    assert info.family_weights(["null"]) == {"null": 0.5}


def test_luck_ceiling_bounds_the_exact_binomial() -> None:
    for items, tau, rate in ((40, 0.9, 0.3), (8, 0.9, 0.2), (10, 0.7, 0.05)):
        needed = math.ceil(round(items * tau, 9))
        exact = -stats.binom.logsf(needed - 1, items, rate) / math.log(2.0)
        ceiling = info.luck_ceiling(items, tau, rate, (rate * 0.9, rate * 1.1))
        assert exact <= ceiling.value <= exact + math.log2(items + 1)
        assert ceiling.low < ceiling.value < ceiling.high
        assert ceiling.kind == "estimate"
    # 7 items of 10 and not 8, although 0.7 * 10 > 7 in floating point
    assert info.luck_ceiling(10, 0.7, 0.1).value == pytest.approx(10 * info.d2(0.7, 0.1) + math.log2(11))
    assert info.luck_ceiling(10, 0.7, 0.9).value == pytest.approx(math.log2(11))
    assert info.luck_ceiling(10, 0.7, 0.0).value == math.inf
    with pytest.raises(ValueError, match="item"):
        info.luck_ceiling(0, 0.9, 0.1)


def test_bits_check_themselves() -> None:
    paid = (("-log2 p", 0.4), ("conditional log ratio", 130.1))
    assert Bits(130.5, "certified upper", 128.0, 132.0, 0.95, "COND", "N(0, I)", paid).value == 130.5
    assert Bits(math.inf, "exact", 0.0, math.inf, 0.95, "NULL", "", paid).value == math.inf
    with pytest.raises(ValueError, match="ledger"):
        Bits(130.6, "certified upper", 128.0, 132.0, 0.95, "COND", "", paid)
    with pytest.raises(ValueError, match="kind"):
        Bits(1.0, "sure", 1.0, 1.0, 0.95, "MC", "")
    with pytest.raises(ValueError, match="NaN"):
        Bits(math.nan, "estimate", 1.0, 1.0, 0.95, "MC", "")


def test_bounds_in_words_never_flatter() -> None:
    assert info.at_most(130.2) == "131"
    assert info.at_most(7.41) == "7.5"
    assert info.at_least(130.9) == "130"
    assert info.at_least(7.49) == "7.4"
    assert info.at_most(math.inf) == "inf"
    assert info.at_most(7.4 + 1e-12) == info.at_least(7.4 - 1e-12) == "7.4"


def test_what_is_no_probability_is_refused() -> None:
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="probabilit"):
            info.h2(wrong)
        with pytest.raises(ValueError, match="probabilit"):
            info.d2(0.5, wrong)
        with pytest.raises(ValueError, match="0 < p"):
            info.d2_at_distance(wrong, 3.0)


def test_a_number_of_bits_says_what_it_is() -> None:
    upper = Bits(524.2, "certified upper", 511.0, 523.5, 0.95, "COND", "N(0, I)")
    assert str(upper) == ("at most 525 bits (certified upper by COND; estimate 511.0 to 523.5 at 95%; prior: N(0, I))")
    assert str(Bits(7.19, "certified lower", 7.0, 9.0, 0.95, "MC", "p")).startswith(
        "at least 7.1 bits (certified lower"
    )
    assert str(Bits(6.0, "exact", 5.0, 7.0, 0.95, "MC", "p")) == "6.0 bits (exact by MC; 5.0 to 7.0 at 95%; prior: p)"
    assert str(Bits(34.7, "certified upper", 34.7, 34.7, 0.95, "PREFILL", "p")) == (
        "at most 34.7 bits (certified upper by PREFILL; prior: p)"
    )
