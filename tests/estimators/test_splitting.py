"""SPLIT on planted regions: unbiased whatever the moves do, resumable to the last digit, certified at its rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from known_answers import (
    Floats,
    Region,
    assert_nominal,
    ball,
    box,
    half_space,
    measured_mc,
    measured_splitting,
    planned,
    shell,
    split_mass,
    two_half_spaces,
)
from leadline.estimators import splitting
from leadline.estimators.splitting import Schedule, State, advance, evaluate, generator, move, multiply, start

REGIONS = [
    *(pytest.param(half_space, (d, b), id=f"half-space-{d}-{b:.0f}") for d in (1, 16) for b in (2.0, 10.0, 40.0)),
    *(pytest.param(two_half_spaces, (d, 40.0), id=f"two-{d}-40") for d in (1, 16)),
    *(pytest.param(ball, (d, b, s), id=f"ball-{d}-{b:.0f}") for d, b, s in ((1, 8, 3), (16, 40, 4))),
    *(pytest.param(shell, (d, b), id=f"shell-{d}-{b:.0f}") for d, b in ((1, 8), (16, 40))),
    *(pytest.param(box, (d, b, s), id=f"box-{d}-{b:.0f}") for d, b, s in ((1, 8, 1), (16, 40, 8))),
]
WIDE = [
    pytest.param(half_space, (576, 40.0), id="half-space"),
    pytest.param(two_half_spaces, (576, 40.0), id="two"),
    pytest.param(ball, (576, 40.0, 6.0), id="ball"),
    pytest.param(shell, (576, 40.0), id="shell"),
    pytest.param(box, (576, 40.0, 12), id="box"),
]

Maker = Callable[..., Region]


def assert_found(region: Region, runs: int) -> None:
    found = measured_splitting(region, planned(region, seed=0), 0, runs)
    assert found.estimate is not None
    assert found.upper is not None
    assert abs(found.estimate.value - region.distance_bits) <= 3.0 * found.stderr_bits
    assert found.stderr_bits < 0.7
    assert region.distance_bits < found.upper.value < region.distance_bits + 4.0


@pytest.mark.parametrize(("make", "how"), REGIONS)
def test_k1_the_planted_distance_is_found(make: Maker, how: tuple[float, ...]) -> None:
    assert_found(make(*how), runs=16)


@pytest.mark.parametrize(("make", "how"), WIDE)
def test_k1_in_576_dimensions(make: Maker, how: tuple[float, ...]) -> None:
    assert_found(make(*how), runs=5)


@pytest.mark.parametrize("dims", [1, 16, 576])
def test_k1_splitting_and_brute_force_agree(dims: int) -> None:
    region = half_space(dims, 6.0)
    brute = measured_mc(region, np.random.default_rng(1), 4096)
    found = measured_splitting(region, planned(region, seed=0), 0, 8)
    assert brute.estimate is not None
    assert found.estimate is not None
    gap = abs(brute.estimate.value - found.estimate.value)
    assert gap <= 3.0 * math.hypot(brute.stderr_bits, found.stderr_bits)


@pytest.mark.parametrize("step", [1e-9, 0.02, 0.4, 1.0])
def test_the_mass_is_unbiased_whatever_the_moves(step: float) -> None:
    """8 bits by 4 uneven levels and 24 particles. At 1e-9 nothing moves, and the mean is still right."""
    levels = tuple(float(stats.norm.isf(2.0**-bits)) for bits in (0.5, 3.0, 5.0, 8.0))
    schedule = Schedule(1, 24, 2, levels, (step,) * 3)
    region = replace(half_space(1, 8.0), level=lambda u: u[..., 0])
    runs = 4000 if step < 0.1 else 1500
    masses = np.exp2([split_mass(region, schedule, 5, run) + 8.0 for run in range(1, runs + 1)])
    assert abs(masses.mean() - 1.0) <= 3.0 * masses.std() / math.sqrt(runs)
    # and the check is sharp enough to see a bias of a fifth
    assert masses.std() / math.sqrt(runs) < 1 / 15


def test_the_limit_is_certified_and_the_interval_covers() -> None:
    region = half_space(4, 8.0)
    schedule = planned(region, seed=0, particles=40, moves=2)
    found = [measured_splitting(region, schedule, seed, 8) for seed in range(200)]
    assert_nominal(bound.upper is not None and bound.upper.value < 8.0 for bound in found)
    said = [bound.estimate for bound in found if bound.estimate is not None]
    assert len(said) == 200
    # the runs' masses are skewed, so t on their mean covers a little less than it says: 8% are allowed for here
    assert_nominal((not bits.low <= 8.0 <= bits.high for bits in said), rate=0.08)


def test_k15_a_single_level_is_brute_force() -> None:
    region = half_space(3, 3.0)
    schedule = Schedule(3, 400, 1, (0.0,), ())
    state = start(schedule, region.phi, 7, 1)
    hits = int(region.contains(generator(7, 1, 0).standard_normal((400, 3))).sum())
    state = advance(state, schedule, region.phi)
    assert state.log2_mass == math.log2(hits / 400)
    assert len(state.particles) == hits
    assert region.contains(state.particles).all()
    assert state.evaluations == 400


def test_a_stopped_run_ends_in_the_same_numbers(tmp_path: Path) -> None:
    region = ball(5, 12.0, 3.0)
    schedule = planned(region, seed=3)
    whole = split_mass(region, schedule, 3, 2)
    state = start(schedule, region.phi, 3, 2)
    while not state.done(schedule):
        # through files and back, with a schedule read afresh, before every level
        np.savez(tmp_path / "state.npz", particles=state.particles, values=state.values)
        numbers = (state.seed, state.run, state.level, state.log2_mass, state.evaluations)
        (tmp_path / "schedule.json").write_text(schedule.to_json())
        with np.load(tmp_path / "state.npz") as stored:
            seed, run, level, log2_mass, evaluations = numbers
            state = State(seed, run, level, stored["particles"], stored["values"], log2_mass, evaluations)
        read = Schedule.from_json((tmp_path / "schedule.json").read_text())
        assert read == schedule
        state = advance(state, read, region.phi)
    assert state.log2_mass == whole
    assert state.evaluations == 150 * (1 + 5 * (len(schedule.levels) - 1))
    with pytest.raises(ValueError, match="done"):
        advance(state, schedule, region.phi)


def test_stopping_early_changes_nothing() -> None:
    """phi may be wrong below its floor, as Region.phi is: the exact one, its slow twin, gives the same run."""
    region = box(4, 10.0, 2)

    def exact(u: Floats, floor: float) -> Floats:
        return region.level(u)

    schedule = planned(region, seed=0)
    lazy, slow = start(schedule, region.phi, 0, 1), start(schedule, exact, 0, 1)
    assert not np.array_equal(lazy.values, slow.values)
    while not lazy.done(schedule):
        lazy, slow = advance(lazy, schedule, region.phi), advance(slow, schedule, exact)
        np.testing.assert_array_equal(lazy.particles, slow.particles)
    assert lazy.log2_mass == slow.log2_mass


def test_runs_differ_and_each_is_a_function_of_its_labels() -> None:
    region = half_space(2, 6.0)
    schedule = planned(region, seed=0)
    masses = [split_mass(region, schedule, seed, run) for seed in (0, 1) for run in (1, 2, 3)]
    assert len(set(masses)) == 6
    assert split_mass(region, schedule, 1, 2) == masses[4]


def test_moves_keep_the_truncated_prior() -> None:
    """Exact draws of N(0, 1) above 1.5 stay such draws, and lose their memory."""
    rng = np.random.default_rng(0)
    tail = float(stats.norm.sf(1.5))
    z = stats.norm.isf(tail * rng.uniform(size=(4000, 1)))
    before, values = z, z[:, 0]
    for _ in range(8):
        z, values, accepted = move(z, values, 1.5, 0.5, lambda u, floor: u[:, 0], rng)
    np.testing.assert_array_equal(values, z[:, 0])
    assert stats.kstest(z[:, 0], lambda x: 1.0 - stats.norm.sf(x) / tail).pvalue > 0.01
    assert abs(np.corrcoef(before[:, 0], z[:, 0])[0, 1]) < 0.3
    assert 0.5 < accepted < 0.7


def test_everybody_has_equally_many_children_on_average() -> None:
    counts = np.array([np.bincount(multiply(7, 24, np.random.default_rng(s)), minlength=7) for s in range(2000)])
    assert set(counts.ravel()) == {3, 4}
    assert (counts.sum(axis=1) == 24).all()
    np.testing.assert_allclose(counts.mean(axis=0), 24 / 7, atol=4.0 * math.sqrt(3 / 7 * 4 / 7 / 2000))


def test_a_run_that_dies_out_has_no_mass_and_takes_the_bound_with_it() -> None:
    schedule = Schedule(1, 10, 1, (0.0, 30.0, 31.0), (0.5, 0.5))
    region = replace(half_space(1, 8.0), level=lambda u: u[..., 0])
    assert split_mass(region, schedule, 0, 1) == -math.inf
    found = splitting([-8.0, -math.inf, -8.0, -8.0])
    assert found.upper is None
    assert found.estimate is not None
    assert found.estimate.value == pytest.approx(8.0 - math.log2(3 / 4))
    assert splitting([-math.inf, -math.inf]).estimate is None


def test_the_bound_by_hand() -> None:
    found = splitting([-4000.0, -4001.0], prior="N(0, I)")
    assert found.estimate is not None
    assert found.upper is not None
    assert found.estimate.value == pytest.approx(4000.0 - math.log2(3 / 4))
    assert found.upper.value == pytest.approx(4000.5 + math.log2(20.0) / 2.0)
    assert dict(found.upper.ledger) == pytest.approx(
        {"-log2 of the masses, on average": 4000.5, "confidence from 2 runs": math.log2(20.0) / 2.0}
    )
    # masses 1 and 1/2: mean 3/4, standard error 1/4
    assert found.stderr_bits == pytest.approx(1 / 3 / math.log(2.0))
    kinds = (found.estimate.kind, found.upper.kind, found.upper.estimator, found.upper.prior)
    assert kinds == ("estimate", "certified upper", "SPLIT", "N(0, I)")


@pytest.mark.parametrize(
    ("make", "how"),
    [
        pytest.param(half_space, (1, 10.0), id="half-space-1"),
        pytest.param(ball, (16, 10.0, 4.0), id="ball-16"),
        pytest.param(shell, (16, 10.0), id="shell-16"),
        pytest.param(half_space, (576, 10.0), id="half-space-576"),
    ],
)
def test_k1_the_limit_is_certified_over_400_seeds(make: Maker, how: tuple[float, ...]) -> None:
    """With the particles, moves and runs of scale ci."""
    region = make(*how)
    schedule = planned(region, seed=0, particles=40, moves=2)
    found = [measured_splitting(region, schedule, seed, 4) for seed in range(400)]
    assert_nominal(bound.upper is not None and bound.upper.value < region.distance_bits for bound in found)
    assert sum(bound.upper is not None for bound in found) > 380


def test_what_it_refuses() -> None:
    for masses in ([-3.0], [-3.0, math.nan], [[-3.0, -3.0]]):
        with pytest.raises(ValueError, match="two runs"):
            splitting(masses)
    for levels, steps in (((1.0, 1.0), (0.5,)), ((0.0, math.inf), (0.5,)), ((-math.inf, 0.0), (0.5,))):
        with pytest.raises(ValueError, match="increase"):
            Schedule(1, 10, 1, levels, steps)
    for steps in ((), (0.0,), (1.5,)):
        with pytest.raises(ValueError, match="step size"):
            Schedule(1, 10, 1, (0.0, 1.0), steps)
    with pytest.raises(ValueError, match="particles"):
        Schedule(1, 1, 1, (0.0,), ())
    with pytest.raises(ValueError, match="shape"):
        evaluate(lambda z, floor: z, np.zeros((3, 2)), 0.0)


def test_a_row_that_cannot_be_computed_lies_outside() -> None:
    values = evaluate(lambda z, floor: np.where(z[:, 0] > 0, np.nan, z[:, 0]), np.array([[1.0], [-1.0]]), 0.0)
    assert values.tolist() == [-math.inf, -1.0]
