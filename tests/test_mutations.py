"""Known answers, K16: the mistakes one makes in such code, made on purpose, and the known answer that each breaks.

Each check runs clean first and then with the mistake, through the functions that a measurement calls. COND also refuses
log ratios that do not average to their KL, and would stop most of these at once; that guard is switched off here, so
that the known answers themselves are seen to fail, and is tested in tests/estimators/test_cond.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import pytest

from known_answers import assert_certified, assert_nominal, half_space, measured_cond
from leadline.selftest import mutations
from leadline.selftest.mutations import dropped_jacobian, mean_for_draws, nats_for_bits, variance_for_scale
from leadline.selftest.planted import wide_ball

Check = Callable[[], object]


@pytest.fixture(autouse=True)
def _no_guard() -> Iterator[None]:
    with mutations.no_guard():
        yield


def k1_half_space() -> None:
    """K1: a certified number is rarely below the truth, 40 bits deep in 16 dimensions."""
    assert_certified(half_space(16, 40.0), seeds=60, draws=128)


def k1_ball() -> None:
    """K1: the same for a ball that q hits with some of its draws."""
    assert_certified(wide_ball(40.0), seeds=60, draws=256)


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
def test_a_mistake_breaks_its_known_answer(mutate: Callable[[], AbstractContextManager[None]], check: Check) -> None:
    check()
    with mutate(), pytest.raises(AssertionError, match="failures in"):
        check()
    check()


def test_p_on_training_draws_breaks_k6() -> None:
    k6_restarts()
    with pytest.raises(AssertionError, match="failures in"):
        k6_restarts(first_fresh_seed=0)
