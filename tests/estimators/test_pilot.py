"""The pilot of SPLIT: what it chooses where the answer is known, and that it ends where nothing can be chosen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from known_answers import Floats, half_space, planned
from leadline.estimators import pilot, splitting
from leadline.estimators.pilot import next_level
from leadline.estimators.splitting import advance, start


def test_levels_halve_and_moves_accept_a_third() -> None:
    region = half_space(8, 20.0)
    found = pilot(region.phi, 8, seed=0, particles=2000)
    schedule = found.schedule
    assert schedule is not None
    assert (found.outcome, found.level, schedule.levels[-1]) == ("reached", 0.0, 0.0)
    assert found.log2_mass == pytest.approx(-20.0, abs=0.6)
    assert found.evaluations == 2000 * (1 + 5 * (len(schedule.levels) - 1))
    cut = stats.norm.isf(2.0**-20)
    shares = np.diff([0.0, *(stats.norm.logsf(np.array(schedule.levels) + cut) / math.log(2.0))])
    np.testing.assert_allclose(shares[:-1], -1.0, atol=0.3)
    accepted: list[float] = []

    def counted(u: Floats, floor: float) -> Floats:
        values = region.phi(u, floor)
        accepted.append(float(np.mean(values > floor)))
        return values

    state = start(schedule, counted, 0, 1)
    accepted.clear()
    while not state.done(schedule):
        state = advance(state, schedule, counted)
    # a production run, after the first level, where the boldest step still accepts half
    assert min(schedule.steps) < 0.6
    assert max(schedule.steps) == 1.0
    assert 0.25 < np.mean(accepted[5:]) < 0.4


def test_a_near_target_is_one_level() -> None:
    schedule = planned(half_space(2, 0.5), seed=0)
    assert (schedule.levels, schedule.steps) == ((0.0,), ())


@pytest.mark.parametrize(
    ("values", "target", "level"),
    [
        ([1, 2, 3, 4], 9, 2),
        # the target as soon as half are above it
        ([1, 2, 3, 4], 2, 2),
        ([1, 2, 3, 4], 1.5, 1.5),
        ([5, 5, 5], 2, 2),
        # ties fall together: 0.25 above 1, or nobody
        ([1, 1, 1, 7], 9, 1),
        ([1, 2, 2, 2], 9, 1),
        ([1, 1, 1, 1], 9, None),
        ([9, 9, 9], 9, None),
        # the lowest number there is, for -inf is no level
        ([-math.inf, -math.inf, 1, 2], 9, -np.finfo(float).max),
        ([-math.inf, -math.inf], 0, None),
    ],
)
def test_the_next_level(values: list[float], target: float, level: float | None) -> None:
    assert next_level(np.array(values, float), target) == level


def test_a_discrete_level_function() -> None:
    """phi = floor(2 u_1) - 5, positive from u_1 = 3 on: steps of uneven mass, ties everywhere."""

    def phi(u: Floats, floor: float) -> Floats:
        return np.floor(2.0 * u[:, 0]) - 5.0

    schedule = pilot(phi, 3, seed=0).schedule
    assert schedule is not None
    assert all(level == round(level) for level in schedule.levels)
    masses = []
    for run in range(1, 17):
        state = start(schedule, phi, 0, run)
        while not state.done(schedule):
            state = advance(state, schedule, phi)
        masses.append(state.log2_mass)
    found = splitting(masses)
    assert found.estimate is not None
    assert abs(found.estimate.value + math.log2(stats.norm.sf(3.0))) <= 3.0 * found.stderr_bits


def test_nothing_to_choose_from_is_an_outcome() -> None:
    found = pilot(lambda u, floor: np.full(len(u), -1.0), 3, seed=0)
    assert (found.schedule, found.outcome, found.level, found.log2_mass) == (None, "one level", -math.inf, 0.0)
    assert found.evaluations == 150
    assert "one level" in found.sentence


def test_a_level_that_is_never_reached_is_an_outcome() -> None:
    found = pilot(lambda u, floor: -np.exp(-u[:, 0]), 1, seed=0, max_levels=12)
    assert (found.schedule, found.outcome) == (None, "out of levels")
    # as far as twelve halvings go: about 12 bits out
    assert -14.0 < found.log2_mass < -10.0
    assert stats.norm.logsf(-math.log(-found.level)) / math.log(2.0) == pytest.approx(found.log2_mass, abs=1.5)
    assert "not reached" in found.sentence
