"""CODE's cells: their mass, draws in them far out in both tails, which one is chosen, and the bound they give."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import integrate, special, stats

from known_answers import Region, assert_nominal, half_space
from leadline.estimators import Cell, cell_of, code_bound, draw, monte_carlo
from leadline.estimators.code import INDEX_BITS, MAX_DEPTH
from leadline.information import Bound, clopper_pearson_lower

NEARLY_ONE = 1.0 - 2.0**-53


def cell(depth: list[int], upper: list[bool], index: list[int]) -> Cell:
    return Cell(np.array(depth, np.int64), np.array(upper, bool), np.array(index, np.int64))


def all_cells(depth: int) -> Cell:
    """Every interval of one depth, each a coordinate of its own, from left to right."""
    half = 2 ** (depth - 1)
    return cell([depth] * 2 * half, [False] * half + [True] * half, [*range(half), *reversed(range(half))])


def measured_code(region: Region, chosen: Cell, rng: np.random.Generator, draws: int) -> Bound:
    """CODE on fresh draws in the cell, as a measurement does it."""
    hits = int(region.contains(draw(chosen, rng.random((draws, region.dims)))).sum())
    return code_bound(chosen, hits, draws)


def hitting_cell(region: Region, rng: np.random.Generator, draws: int = 1000) -> Cell:
    """The cell for the moments of the draws of the region's q that hit; as on validation, none serves the bound."""
    z = region.q.draw(rng, draws)
    z = z[region.contains(z)]
    return cell_of(z.mean(axis=0), z.std(axis=0))


# The cell and its draws


@pytest.mark.parametrize("depth", [1, 2, 5, 9])
def test_the_cells_of_a_depth_share_the_line_equally(depth: int) -> None:
    cells = all_cells(depth)
    low, high = np.sort(draw(cells, np.stack([np.zeros(2**depth), np.full(2**depth, NEARLY_ONE)])), axis=0)
    edges = stats.norm.ppf(np.arange(1, 2**depth) / 2**depth)
    np.testing.assert_allclose(high[:-1], edges, atol=1e-13)
    np.testing.assert_allclose(low[1:], edges, atol=1e-13)
    # each draw between its cell's ends
    z = draw(cells, np.random.default_rng(0).random((50, 2**depth)))
    assert ((z >= low - 1e-13) & (z <= high + 1e-13)).all()


def test_the_length_is_the_mass_exactly() -> None:
    box = cell([3, 0, 7, 1], [True, False, False, True], [1, 0, 5, 0])
    assert box.bits == 11
    low, high = np.sort(draw(box, np.stack([np.full(4, 1e-17), np.full(4, NEARLY_ONE)])), axis=0)
    masses = special.ndtr(high) - special.ndtr(low)
    np.testing.assert_allclose(masses, [float(Fraction(1, 2**depth)) for depth in (3, 0, 7, 1)], rtol=1e-12)
    assert math.prod(masses) == pytest.approx(2.0**-box.bits, rel=1e-12)


@pytest.mark.parametrize(
    ("depth", "index"), [(52, 0), (60, 2000), (64, 2**13), (200, 7), (1000, 2**40), (MAX_DEPTH, 0)]
)
def test_tails_are_exact_on_both_sides(depth: int, index: int) -> None:
    uniforms = np.random.default_rng(0).random((200, 2))
    uniforms[:2] = [[0.0, 0.0], [NEARLY_ONE, NEARLY_ONE]]
    uniforms[:, 1] = uniforms[:, 0]
    z = draw(cell([depth, depth], [False, True], [index, index]), uniforms)
    assert np.isfinite(z).all()
    np.testing.assert_array_equal(z[:, 0], -z[:, 1])
    # forwards again: the logarithm of the tail's mass, where the mass itself may be below the smallest float
    wanted = np.log(index + uniforms[:, 0] + 2.0**-54) - depth * math.log(2.0)
    np.testing.assert_allclose(special.log_ndtr(z[:, 0]), wanted, rtol=1e-12)
    if depth == 60:
        # 2000 parts in 2^60 is the mass beyond 7.9 standard deviations: checked with the upper tail's own function
        tail = stats.norm.sf(z[:, 1]) * 2.0**60
        np.testing.assert_allclose(tail, 2000.0 + uniforms[:, 0], rtol=1e-11)
        assert 7.8 < z[:, 1].min() <= z[:, 1].max() < 8.0


def test_a_coordinate_without_bits_is_the_prior() -> None:
    z = draw(cell([0], [False], [0]), np.array([[0.0], [0.25], [0.5], [0.975], [NEARLY_ONE]]))[:, 0]
    np.testing.assert_allclose(z[1:4], stats.norm.ppf([0.25, 0.5, 0.975]), atol=1e-12)
    # half a spacing of the uniforms in from either end
    assert z[0] == -z[4] == pytest.approx(stats.norm.ppf(2.0**-54))
    z = draw(cell([0], [False], [0]), np.random.default_rng(1).random((4000, 1)))
    assert stats.kstest(z[:, 0], "norm").pvalue > 0.01


def test_what_a_cell_refuses() -> None:
    for depth, upper, index in [
        ([-1], [False], [0]),
        ([MAX_DEPTH + 1], [False], [0]),
        ([0], [True], [0]),
        ([0], [False], [1]),
        ([3], [False], [4]),
        ([3], [False], [-1]),
        ([200], [False], [2**INDEX_BITS]),
        ([1, 1], [False], [0]),
    ]:
        with pytest.raises(ValueError, match="cell"):
            cell(depth, upper, index)
    for uniforms in ([[1.0]], [[-0.1]], [[math.nan]], [[0.5, 0.5]], [0.5]):
        with pytest.raises(ValueError, match="uniforms"):
            draw(cell([1], [False], [0]), np.array(uniforms))


# Which cell


def relative_bits(mean: float, scale: float, low: float, high: float, depth: int) -> float:
    """KL of the prior within (low, high), of mass 2^-depth, from N(mean, scale^2) in bits, by adaptive quadrature."""

    def integrand(z: float) -> float:
        log_ratio = (z * z - ((z - mean) / scale) ** 2) / 2.0 - math.log(scale)
        return float(stats.norm.pdf(z)) * log_ratio

    inside = integrate.quad(integrand, max(low, -12.0), min(high, 12.0))[0]
    return depth - inside * 2.0**depth / math.log(2.0)


@pytest.mark.parametrize(
    ("mean", "scale"), [(0.0, 0.3), (0.4, 0.9), (-0.7, 0.15), (1.1, 0.6), (-2.0, 0.3), (0.67, 0.05), (1.5, 1.0)]
)
def test_the_cell_is_the_one_closest_to_q(mean: float, scale: float) -> None:
    chosen = cell_of([mean], [scale])
    costs = {}
    for depth in range(7):
        edges = stats.norm.ppf(np.arange(2**depth + 1) / 2**depth)
        for place in range(2**depth):
            costs[depth, place] = relative_bits(mean, scale, edges[place], edges[place + 1], depth)
    depth, index = int(chosen.depth[0]), int(chosen.index[0])
    place = 2**depth - 1 - index if chosen.upper[0] else index
    # the quadrature inside is coarse: a hundredth of a bit
    assert costs[depth, place] <= min(costs.values()) + 0.02


def test_a_coordinate_that_is_the_prior_costs_nothing() -> None:
    chosen = cell_of([0.0, 0.0, 6.0, -6.0], [1.0, 0.98, 0.2, 0.2])
    assert chosen.depth[0] == chosen.depth[1] == 0
    assert chosen.depth[2] == chosen.depth[3] > 20
    assert chosen.upper.tolist() == [False, False, True, False]
    assert chosen.index[2] == chosen.index[3]
    assert cell_of([], []).bits == 0


def test_far_and_narrow_laws_get_a_cell() -> None:
    chosen = cell_of([8.0, -8.0, 30.0, 60.0, 0.3, 0.0], [0.1, 1e-3, 1.0, 0.1, 1e-15, 1e-9])
    z = draw(chosen, np.random.default_rng(0).random((64, 6)))
    assert np.isfinite(z).all()
    np.testing.assert_allclose(z[:, 1], -8.0, atol=4e-3)
    np.testing.assert_allclose(z[:, 4], 0.3, atol=1e-12)
    assert chosen.depth.max() <= MAX_DEPTH


def test_a_lower_price_makes_narrower_cells() -> None:
    bits = [cell_of(np.linspace(-2.0, 2.0, 40), np.full(40, 0.7), price).bits for price in (2.0, 1.0, 0.5, 0.2)]
    assert bits == sorted(bits)
    assert bits[0] < bits[-1]


def test_what_the_choice_refuses() -> None:
    for mean, scale, price in [([0.0], [0.0], 1.0), ([0.0], [1.0], 0.0), ([0.0], [math.inf], 1.0)]:
        with pytest.raises(ValueError, match="positive"):
            cell_of(mean, scale, price)
    for mean, scale in [([math.nan], [1.0]), ([0.0, 0.0], [1.0]), (0.0, 1.0)]:
        with pytest.raises(ValueError, match="finite mean"):
            cell_of(mean, scale)


# The bound


@pytest.mark.parametrize("dims", [1, 16])
@pytest.mark.parametrize("bits", [2.0, 5.0, 7.5, 10.0, 20.0, 40.0])
def test_half_spaces_are_bounded_closely(dims: int, bits: float) -> None:
    region = half_space(dims, bits)
    rng = np.random.default_rng(0)
    closely = measured_code(region, hitting_cell(region, rng), rng, 256).upper
    assert closely is not None
    # the tail beyond the cut in whole bits: below one bit lost
    assert bits <= closely.value <= bits + 0.7


@pytest.mark.parametrize("dims", [1, 16])
def test_a_q_that_mostly_misses_makes_a_cell_that_mostly_misses(dims: int) -> None:
    """Every 16th draw or so hits: a bit more is lost, and the limit lies below the truth as rarely as it says."""
    region = half_space(dims, 20.0)
    chosen = cell_of(region.q.mean, region.q.scale)
    limits = [measured_code(region, chosen, np.random.default_rng(seed), 500).upper for seed in range(100)]
    assert_nominal(limit is None or limit.value < 20.0 for limit in limits)
    assert max(limit.value for limit in limits if limit) < 22.0


def test_the_limit_covers_at_its_rate() -> None:
    """The cell holds all of S and half as much again, so L - log2 p is D itself, and only the draws decide."""
    region = half_space(1, 7.5)
    around = cell([7], [True], [0])
    limits = [measured_code(region, around, np.random.default_rng(seed), 128).upper for seed in range(400)]
    assert_nominal(limit is None or limit.value < 7.5 for limit in limits)
    assert max(limit.value for limit in limits if limit) < 8.3


def test_many_weak_coordinates_need_a_lower_price_and_stay_far() -> None:
    """A half-space across all axes: cells have no cheap way to lean a little in every coordinate."""
    dims, bits = 64, 10.0
    direction = np.random.default_rng(0).standard_normal(dims)
    direction /= np.linalg.norm(direction)
    cut = float(stats.norm.isf(2.0**-bits))
    across = Region("across", dims, bits, lambda u: u @ direction - cut, half_space(dims, bits).q)
    bounds = []
    for price in (1.0, 0.7):
        chosen = cell_of((cut + 0.1) * direction, 1.0 - 0.9 * direction**2, price)
        bounds.append((chosen.bits, measured_code(across, chosen, np.random.default_rng(1), 2000)))
    (few, rarely), (more, often) = bounds
    assert few < more
    assert rarely.estimate is not None
    assert often.upper is not None
    # fewer bits of cell and more bits of p
    assert rarely.estimate.value - few > often.upper.value - more
    assert bits <= often.upper.value <= 2.0 * bits


def test_the_whole_line_is_brute_force() -> None:
    whole = cell_of(np.zeros(3), np.ones(3))
    found, brute = code_bound(whole, 20, 128, prior="N(0, I)"), monte_carlo(20, 128)
    assert found.upper is not None
    assert brute.upper is not None
    assert found.estimate is not None
    assert brute.estimate is not None
    assert found.upper.value == brute.upper.value
    assert (found.estimate.value, found.estimate.low) == (brute.estimate.value, brute.estimate.low)
    assert found.estimate.high == brute.estimate.high
    assert found.stderr_bits == brute.stderr_bits
    assert found.lower is None


def test_the_ledger_and_what_is_said_without_hits() -> None:
    box = cell([60, 0, 9], [True, False, False], [3, 0, 100])
    upper = code_bound(box, 60, 64, prior="N(0, I)").upper
    assert upper is not None
    share = -math.log2(clopper_pearson_lower(60, 64))
    assert upper.ledger == (("cell", 69.0), ("-log2 p", share))
    assert upper.value == 69.0 + share
    assert (upper.kind, upper.estimator, upper.prior) == ("certified upper", "CODE", "N(0, I)")
    nothing = code_bound(box, 0, 64)
    assert (nothing.estimate, nothing.upper, nothing.lower) == (None, None, None)
    assert math.isnan(nothing.stderr_bits)
    with pytest.raises(ValueError, match="at least 64"):
        code_bound(box, 63, 63)
