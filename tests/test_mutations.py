"""Known answers, K16: the mistakes one makes in such code, made on purpose, and the known answer that each breaks.

Each check runs clean first and then with the mistake, through the functions that a measurement calls. COND also refuses
log ratios that do not average to their KL, and would stop most of these at once; that guard is switched off here, so
that the known answers themselves are seen to fail, and is tested in tests/estimators/test_cond.py.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from known_answers import Floats, Proposal, Region, assert_certified, assert_nominal, ball, half_space, measured_cond
from leadline import information

Check = Callable[[], object]


@pytest.fixture(autouse=True)
def _no_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    # the package's attribute `cond` is the function: the module of that name is fetched by hand
    monkeypatch.setattr(importlib.import_module("leadline.estimators.cond"), "DISAGREEMENT_STDERRS", math.inf)


def k1_half_space() -> None:
    """K1: a certified number is rarely below the truth, 40 bits deep in 16 dimensions."""
    assert_certified(half_space(16, 40.0), seeds=60, draws=128)


def wide_ball() -> Region:
    """A ball whose q is wider than it: the mean lies inside and most draws do not."""
    region = ball(16, 40.0, 4.0)
    return replace(region, q=Proposal(region.q.mean, region.q.scale * 1.25))


def k1_ball() -> None:
    """K1: the same for a ball that q hits with some of its draws."""
    assert_certified(wide_ball(), seeds=60, draws=256)


def k6_restarts(first_fresh_seed: int = 1000) -> None:
    """K6: of 20 restarts the best is chosen on one set of draws and its bound computed on another."""
    region = half_space(1, 10.0)
    failed = []
    for run in range(100):
        chosen = range(20 * run, 20 * run + 20)
        training = {seed: measured_cond(region, np.random.default_rng(seed), 64).upper for seed in chosen}
        best = min(chosen, key=lambda seed: math.inf if (upper := training[seed]) is None else upper.value)
        found = measured_cond(region, np.random.default_rng(first_fresh_seed + best), 64).upper
        failed.append(found is not None and found.value < region.distance_bits)
    assert_nominal(failed)


def nats_for_bits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(information, "BITS_PER_NAT", 1.0)


def variance_for_scale(patch: pytest.MonkeyPatch) -> None:
    ratio, divergence = information.log_ratio_bits, information.gaussian_kl_bits

    def wrong_ratio(z: Any, mean: Any, scale: Any) -> Floats:
        return ratio(z, mean, np.square(scale))

    def wrong_divergence(mean: Any, scale: Any) -> tuple[Floats, Floats]:
        return divergence(mean, np.square(scale))

    patch.setattr(information, "log_ratio_bits", wrong_ratio)
    patch.setattr(information, "gaussian_kl_bits", wrong_divergence)


def dropped_jacobian(patch: pytest.MonkeyPatch) -> None:
    ratio, divergence = information.log_ratio_bits, information.gaussian_kl_bits

    def wrong_ratio(z: Any, mean: Any, scale: Any) -> Floats:
        without: Floats = ratio(z, mean, scale) + np.log2(scale).sum()
        return without

    def wrong_divergence(mean: Any, scale: Any) -> tuple[Floats, Floats]:
        location, width = divergence(mean, scale)
        return location, width + np.log2(scale)

    patch.setattr(information, "log_ratio_bits", wrong_ratio)
    patch.setattr(information, "gaussian_kl_bits", wrong_divergence)


def mean_for_draws(patch: pytest.MonkeyPatch) -> None:
    def repeated(self: Proposal, rng: np.random.Generator, draws: int) -> Floats:
        return np.repeat(self.mean[None], draws, axis=0)

    patch.setattr(Proposal, "draw", repeated)


@pytest.mark.parametrize(
    ("mutate", "check"),
    [
        (nats_for_bits, k1_half_space),
        (nats_for_bits, k1_ball),
        (variance_for_scale, k1_half_space),
        (variance_for_scale, k1_ball),
        (dropped_jacobian, k1_half_space),
        (dropped_jacobian, k1_ball),
        (mean_for_draws, k1_ball),
    ],
)
def test_a_mistake_breaks_its_known_answer(
    mutate: Callable[[pytest.MonkeyPatch], None], check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    check()
    with monkeypatch.context() as patch:
        mutate(patch)
        with pytest.raises(AssertionError, match="failures in"):
            check()
    check()


def test_p_on_training_draws_breaks_k6() -> None:
    k6_restarts()
    with pytest.raises(AssertionError, match="failures in"):
        k6_restarts(first_fresh_seed=0)
