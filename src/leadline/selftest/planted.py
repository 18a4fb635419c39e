"""Regions of a Gaussian prior whose distance is known exactly, proposals fitted to them, and draws that are counted
through the functions that a measurement calls.

`measured_cond`, `measured_mc` and their like draw, and everything counted in bits comes from the estimators. It knows
no models. Ids: docs/measurement.md, known answers (K1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, special, stats  # type: ignore[import-untyped]

from leadline import rows
from leadline.estimators import cond, importance, lower, monte_carlo, pilot, splitting
from leadline.estimators.splitting import Schedule, advance, start
from leadline.information import Bound, Floats
from leadline.solvers.base import Parameters
from leadline.solvers.variational import Variational

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Proposal:
    """q = N(mean, diag scale^2), both (d,)."""

    mean: Floats
    scale: Floats

    @property
    def parameters(self) -> Parameters:
        """The same as a solver has them."""
        return {"mean": torch.from_numpy(self.mean), "log_scale": torch.from_numpy(np.log(self.scale))}

    def draw(self, rng: np.random.Generator, draws: int) -> Floats:
        """(draws, d) fresh draws, by the solver."""
        noise = torch.from_numpy(rng.standard_normal((draws, self.mean.size)))
        found: Floats = Variational(1.0, 1.0, 0.0, 0.0).draw(self.parameters, noise).numpy()
        return found

    def log_ratios(self, z: Floats) -> Floats:
        """(draws,) log2 q / pi, as they are taken for rows."""
        return rows.log_ratios({}, torch.from_numpy(z), self.parameters)

    @property
    def kl_bits(self) -> float:
        """Closed-form KL(q || pi), as it is taken for rows."""
        return float(rows.divergence({}, self.parameters)["kl_bits"])


@dataclass(frozen=True)
class Region:
    """A set S of whitened coordinates, its exact distance -log2 pi(S) for pi = N(0, I), and a q that finds it.

    level: (..., d) -> (...), positive inside S
    """

    name: str
    dims: int
    distance_bits: float
    level: Callable[[Floats], Floats] = field(repr=False)
    q: Proposal = field(repr=False)

    def contains(self, u: Floats) -> Bools:
        """(..., d) -> (...); the border, where the level is 0, has no mass."""
        inside: Bools = self.level(u) >= 0.0
        return inside

    def phi(self, u: Floats, floor: float) -> Floats:
        """The level as splitting asks for it: exact above the floor, and as wrong as allowed elsewhere."""
        values = self.level(u)
        return np.where(values > floor, values, floor)


def prior(dims: int) -> Proposal:
    return Proposal(np.zeros(dims), np.ones(dims))


def half_space(dims: int, bits: float, p: float = 0.15) -> Region:
    """{u_1 >= c}; q with q(S) = p is the one whose COND value is least, and the prior in all other coordinates."""
    cut = float(stats.norm.isf(2.0**-bits))
    found = optimize.minimize_scalar(
        lambda log_scale: half_space_population(cut, p, math.exp(log_scale))[2], bounds=(-5.0, 0.5), method="bounded"
    )
    mean, scale = np.zeros(dims), np.ones(dims)
    scale[0] = math.exp(found.x)
    mean[0] = half_space_population(cut, p, scale[0])[0]
    return Region("half-space", dims, bits, lambda u: u[..., 0] - cut, Proposal(mean, scale))


def half_space_population(cut: float, p: float, scale: float) -> tuple[float, float, float]:
    """(mean of q, KL, COND value) in bits for {u >= cut} and q = N(mean, scale^2) with q(S) = p, by truncated moments.

    Written out once more from the definition: log2 q / pi = (u^2 / 2 - e^2 / 2 - log scale) / log 2, u = m + scale e.
    """
    edge = float(stats.norm.isf(p))
    mean = cut - scale * edge
    first = float(stats.norm.pdf(edge)) / p
    second = 1.0 + edge * first
    nats = (mean**2 + 2.0 * mean * scale * first + (scale**2 - 1.0) * second) / 2.0 - math.log(scale)
    kl = (mean**2 + scale**2 - 1.0) / 2.0 - math.log(scale)
    return mean, kl / math.log(2.0), -math.log2(p) + nats / math.log(2.0)


def two_half_spaces(dims: int, bits: float) -> Region:
    """{|u_1| >= c}; q is one half's, so that its COND value is at least 1 bit too high."""
    cut = float(stats.norm.isf(2.0**-bits / 2.0))
    return Region("two half-spaces", dims, bits, lambda u: np.abs(u[..., 0]) - cut, half_space(dims, bits + 1.0).q)


def noncentral_chi2_logcdf(x: float, dims: int, shift: float) -> float:
    """log P(|u - a|^2 <= x), |a| = shift: a Poisson mixture of central laws, summed in logs."""
    half = shift * shift / 2.0
    j = np.arange(int(half + 40.0 * math.sqrt(half) + 400.0))
    log_weight = j * math.log(half) - half - special.gammaln(j + 1.0)
    return float(special.logsumexp(log_weight + stats.chi2.logcdf(x, dims + 2 * j)))


def ball(dims: int, bits: float, shift: float) -> Region:
    """{|u - a| <= r} with a on the first axis at distance `shift`; r is solved for."""
    target = -bits * math.log(2.0)
    top = (math.sqrt(dims) + shift + 10.0) ** 2
    x = optimize.brentq(lambda x: noncentral_chi2_logcdf(x, dims, shift) - target, 1e-9, top, xtol=1e-13, rtol=1e-13)

    def level(u: Floats) -> Floats:
        depth: Floats = x - (np.einsum("...i,...i->...", u, u) - 2.0 * shift * u[..., 0] + shift * shift)
        return depth

    return Region("ball", dims, bits, level, _learned(level, dims, shift))


def wide_ball(bits: float) -> Region:
    """A ball in 16 dimensions whose q is wider than it: the mean lies inside and most draws do not."""
    region = ball(16, bits, 4.0)
    return replace(region, q=Proposal(region.q.mean, region.q.scale * 1.25))


def _learned(level: Callable[[Floats], Floats], dims: int, shift: float) -> Proposal:
    """A q by a few cross-entropy steps: start at the centre, draw, and take the moments of what fell inside."""
    rng = np.random.default_rng(0)
    mean, scale = np.zeros(dims), np.ones(dims)
    mean[0] = shift
    for _ in range(12):
        u = Proposal(mean, scale).draw(rng, 400)
        inside = u[level(u) >= 0.0]
        if len(inside) > 200:
            break
        if len(inside) < 20:
            # nothing to learn from yet: draw closer to the centre
            scale = scale * 0.8
            continue
        rest = float(np.sqrt(np.mean(inside[:, 1:] ** 2))) if dims > 1 else 1.0
        mean, scale = np.zeros(dims), np.full(dims, rest)
        mean[0], scale[0] = inside[:, 0].mean(), 1.1 * inside[:, 0].std()
    return Proposal(mean, scale)


def shell(dims: int, bits: float) -> Region:
    """{r <= |u| <= 1.2 r}, farther out than the prior's typical length; r is solved for. q is an isotropic Gaussian."""

    def log2_mass(x: float) -> float:
        return math.log2(stats.chi2.sf(x, dims) - stats.chi2.sf(1.44 * x, dims))

    near, far = stats.chi2.isf(0.1, dims), stats.chi2.isf(1e-14, dims)
    x = float(optimize.brentq(lambda x: log2_mass(x) + bits, near, far, xtol=1e-12))

    def level(u: Floats) -> Floats:
        square = np.einsum("...i,...i->...", u, u)
        depth: Floats = np.minimum(square - x, 1.44 * x - square)
        return depth

    return Region("shell", dims, bits, level, Proposal(np.zeros(dims), np.full(dims, math.sqrt(1.1 * x / dims))))


def box(dims: int, bits: float, sides: int) -> Region:
    """{1 <= u_i <= h for the first `sides` coordinates}; h is solved for. q sits in the middle, 4 widths a side."""
    tail, mass = float(stats.norm.sf(1.0)), 2.0 ** (-bits / sides)
    high = float(stats.norm.isf(tail - mass))
    mean, scale = np.zeros(dims), np.ones(dims)
    mean[:sides], scale[:sides] = (1.0 + high) / 2.0, (high - 1.0) / 4.0

    def level(u: Floats) -> Floats:
        depth: Floats = np.minimum(u[..., :sides] - 1.0, high - u[..., :sides]).min(axis=-1)
        return depth

    return Region("box", dims, bits, level, Proposal(mean, scale))


def measured_cond(region: Region, rng: np.random.Generator, draws: int) -> Bound:
    """COND on fresh draws of the region's q, as a measurement does it."""
    q = region.q
    z = q.draw(rng, draws)
    return cond(q.log_ratios(z), region.contains(z), q.kl_bits)


def measured_mc(region: Region, rng: np.random.Generator, draws: int) -> Bound:
    """MC on fresh draws of the prior."""
    hits = int(region.contains(rng.standard_normal((draws, region.dims))).sum())
    return monte_carlo(hits, draws)


def measured_lower(region: Region, rng: np.random.Generator, draws: int) -> Bound:
    """LOWER on fresh draws of the prior: one item, which a draw gets right where it lies in S."""
    hits = int(region.contains(rng.standard_normal((draws, region.dims))).sum())
    return lower(hits, draws, 1.0)


def measured_importance(region: Region, rng: np.random.Generator, draws: int) -> Bound:
    """IW on fresh draws of the region's q."""
    q = region.q
    z = q.draw(rng, draws)
    return importance(q.log_ratios(z), region.contains(z), q.kl_bits)


def planned(region: Region, seed: int, particles: int = 150, moves: int = 5) -> Schedule:
    """The schedule that a pilot makes for a region."""
    found = pilot(region.phi, region.dims, seed, particles=particles, moves=moves)
    if found.schedule is None:
        raise RuntimeError(found.sentence)
    return found.schedule


def split_mass(region: Region, schedule: Schedule, seed: int, run: int) -> float:
    """log2 of the mass that one production run finds."""
    state = start(schedule, region.phi, seed, run)
    while not state.done(schedule):
        state = advance(state, schedule, region.phi)
    return state.log2_mass


def measured_splitting(region: Region, schedule: Schedule, seed: int, runs: int) -> Bound:
    """SPLIT by production runs 1 to `runs`."""
    return splitting([split_mass(region, schedule, seed, run) for run in range(1, runs + 1)])


def allowed_failures(tries: int, rate: float = 0.05) -> int:
    """The most failures in `tries` that a rate of at most `rate` explains: the 99.9% quantile of the binomial.

    A limit at exactly 95% fails in more than 5% of the tries half of the time, so "at most 5% of 400" itself would be a
    coin flip. Past this quantile a true 5% limit lands once in a thousand runs of the test (and seeds are fixed).
    """
    return int(stats.binom.ppf(0.999, tries, rate))
