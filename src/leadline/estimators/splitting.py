"""SPLIT: multilevel splitting. A rare set, reached through a row of larger ones, each about half of the one before.

Particles are prior draws in whitened coordinates, pi = N(0, I_d); those above a level are multiplied, moved without
leaving it, and counted at the next. Only values of a level function are needed, no gradient and no trained q, and the
dimension enters neither the moves nor the levels. It does not know what phi computes. Levels and step sizes are frozen
in a `Schedule`, which `pilot` makes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from leadline.estimators.markov import log2_mean, markov
from leadline.information import BITS_PER_NAT, CONFIDENCE, Bits, Bound, Floats, student_quantile

Phi = Callable[[Floats, float], Floats]
"""phi(z, floor): (n, d) -> (n,) values, exact wherever they exceed `floor` and anything not above it elsewhere, so an
expensive phi may stop a row once it cannot exceed the floor. Each row's value is a function of that row alone."""


@dataclass(frozen=True)
class Schedule:
    """All that a production run needs to know, fixed before it starts.

    dims:      d
    particles: in each run
    moves:     pCN moves of every particle at every level but the last
    levels:    increasing; S is what lies above the last of them
    steps:     step size b in (0, 1] of the moves above each level but the last
    """

    dims: int
    particles: int
    moves: int
    levels: tuple[float, ...]
    steps: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.dims < 1 or self.particles < 2 or self.moves < 1 or not self.levels:
            raise ValueError("a schedule needs a dimension, two particles, one move and one level at least")
        finite = all(math.isfinite(level) for level in self.levels)
        if not finite or any(high <= low for low, high in zip(self.levels, self.levels[1:], strict=False)):
            raise ValueError(f"levels are finite and increase, not {self.levels}")
        if len(self.steps) != len(self.levels) - 1 or not all(0.0 < step <= 1.0 for step in self.steps):
            raise ValueError(f"need a step size in (0, 1] for each level but the last, not {self.steps}")

    def to_json(self) -> str:
        """One line of JSON; floats come back to the last digit."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """The schedule that `to_json` wrote."""
        stored = json.loads(text)
        return cls(**{**stored, "levels": tuple(stored["levels"]), "steps": tuple(stored["steps"])})


@dataclass(frozen=True)
class State:
    """A production run between two levels: what to store in order to go on from here.

    seed, run:   labels of all randomness in the run; `advance` draws from a generator made of (seed, run, level), so a
                 run that was stopped and continued ends in the same numbers
    level:       levels counted so far
    particles:   (n, d), all above the last counted level; once done, the draws that were found in S
    values:      (n,) phi of them, exact where above the next level
    log2_mass:   log2 of the product of the survivors' shares; -inf where none survived
    evaluations: rows of phi so far
    """

    seed: int
    run: int
    level: int
    particles: Floats
    values: Floats
    log2_mass: float
    evaluations: int

    def done(self, schedule: Schedule) -> bool:
        """Whether `log2_mass` is the run's answer."""
        return self.level == len(schedule.levels) or math.isinf(self.log2_mass)


def start(schedule: Schedule, phi: Phi, seed: int, run: int) -> State:
    """A run before its first level: draws of the prior. run: 1, 2, ...; 0 is the pilot's."""
    z = generator(seed, run, 0).standard_normal((schedule.particles, schedule.dims))
    return State(seed, run, 0, z, evaluate(phi, z, schedule.levels[0]), 0.0, schedule.particles)


def advance(state: State, schedule: Schedule, phi: Phi) -> State:
    """Count the survivors of the next level; unless it is the last, multiply and move them. ValueError once done.

    The work of one call is particles x moves rows of phi. The answer of the finished run is `log2_mass`, and
    2^log2_mass is unbiased for pi(S): see `splitting`.
    """
    if state.done(schedule):
        raise ValueError("this run is done")
    passed, level = state.level + 1, schedule.levels[state.level]
    above = state.values > level
    z, values = state.particles[above], state.values[above]
    share = len(z) / len(state.values)
    log2_mass = state.log2_mass + (math.log2(share) if share else -math.inf)
    evaluations = state.evaluations
    if share and passed < len(schedule.levels):
        rng = generator(state.seed, state.run, passed)
        parents = multiply(len(z), schedule.particles, rng)
        z, values = z[parents], values[parents]
        for _ in range(schedule.moves):
            z, values, _ = move(z, values, level, schedule.steps[state.level], phi, rng)
        evaluations += schedule.moves * schedule.particles
    return State(state.seed, state.run, passed, z, values, log2_mass, evaluations)


def splitting(log2_masses: ArrayLike, confidence: float = CONFIDENCE, prior: str = "") -> Bound:
    """Estimate of D and certified upper bound from independent production runs with one frozen schedule.

    log2_masses: (R,) `log2_mass` of runs 1 to R, all of them, -inf included. R is fixed beforehand.
    No mass in any run: nothing is said. A run without mass leaves no upper bound.
    ValueError: fewer than two runs, or NaN. Source: docs/measurement.md, bounds, SPLIT.

    **Unbiased, whatever the mixing.** Levels L_1 < ... < L_m and steps are fixed; S_j = {phi > L_j}, S_0 is everything.
    Write g_j(f) for the integral of f over S_j under pi, and G_j(f) = P_1 ... P_j mean_i f(z_i) for its estimate by the
    particles that stand after level j, P_j the share of them that survived it. Claim: E[G_j(f)] = g_j(f) for bounded f.
    It holds for j = 0, where the z_i are prior draws. Let it hold for j, and let A be the survivors of level j + 1. The
    particles afterwards are copies of A, |A| / n = P_(j+1), each copied n / |A| times in expectation, and moved by a
    Markov kernel K. So given the particles before,

        E[G_(j+1)(f)] = P_1 ... P_j (|A| / n) (1 / n) sum_(i in A) (n / |A|) K f(z_i) = G_j(1(S_(j+1)) K f),

    and where A is empty both ends are 0. Its expectation is g_j(1(S_(j+1)) K f) = integral of K f over S_(j+1), which
    is g_(j+1)(f) as K leaves pi on S_(j+1) invariant. f = 1 and j = m is the product of all shares: E = pi(S). Nowhere
    was a particle asked to be independent of another, or to have forgotten its parent; bad mixing costs variance only.
    (Del Moral, Feynman-Kac Formulae, 2004, section 7.4, and Cerou, Del Moral, Furon, Guyader, Statistics and Computing
    22, 2012, for multinomial copies; here each survivor is copied floor(n / |A|) times and a random subset of them once
    more, which has the same expectation and less noise.)

    **K.** z' = sqrt(1 - b^2) z + b xi, xi ~ N(0, I), is reversible under N(0, I), and refusing what leaves S_j keeps it
    so on S_j (pCN: Cotter, Roberts, Stuart, White, Statistical Science 28, 2013). b is frozen: one that were adapted to
    the very particles it moves would leave nothing invariant.

    **The limit.** The runs are independent given the schedule, each with mean pi(S): `markov`. A pilot that was unlucky
    makes the bound loose and not wrong. What it does ask is that phi be a function: the same z, the same value.

    **The estimate** is -log2 of the mean over runs. Its interval is Student's t with R - 1 degrees of freedom on the
    logarithm, by the delta method; an assumption on the runs' law, as for every estimate.
    """
    masses = np.asarray(log2_masses, np.float64)
    if masses.ndim != 1 or masses.size < 2 or np.isnan(masses).any():
        raise ValueError(f"need the log2 masses of two runs at least and none of them NaN, not {masses}")
    value, runs = -log2_mean(masses), masses.size
    if math.isinf(value):
        return Bound(None, None, None, math.nan)
    stderr = float(np.exp2(masses + value).std(ddof=1)) / math.sqrt(runs) * BITS_PER_NAT
    half = student_quantile((1.0 + confidence) / 2.0, runs - 1) * stderr
    low, high = value - half, value + half
    paid = ((f"-log2 of the mean mass of {runs} runs", value),)
    estimate = Bits(value, "estimate", low, high, confidence, "SPLIT", prior, paid)
    return Bound(estimate, markov(masses, low, high, confidence, "SPLIT", prior), None, stderr)


def generator(seed: int, run: int, level: int) -> np.random.Generator:
    """Randomness as a function of its labels alone."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(run, level)))


def evaluate(phi: Phi, z: Floats, floor: float) -> Floats:
    """phi in float64; NaN counts as outside every level, which is where a row that cannot be computed belongs."""
    values = np.asarray(phi(z, floor), np.float64)
    if values.shape != (len(z),):
        raise ValueError(f"phi gave values of shape {values.shape} for {len(z)} rows")
    return np.where(np.isnan(values), -math.inf, values)


def multiply(survivors: int, particles: int, rng: np.random.Generator) -> np.ndarray:
    """(particles,) index of each particle's parent: every survivor equally often, the rest a random subset of them."""
    times, rest = divmod(particles, survivors)
    extra = rng.choice(survivors, size=rest, replace=False)
    return np.concatenate([np.repeat(np.arange(survivors), times), extra])


def move(
    z: Floats, values: Floats, level: float, step: float, phi: Phi, rng: np.random.Generator
) -> tuple[Floats, Floats, float]:
    """One pCN move of every particle above `level`: (particles, values, share accepted)."""
    proposed = math.sqrt(1.0 - step * step) * z + step * rng.standard_normal(z.shape)
    reached = evaluate(phi, proposed, level)
    accepted = reached > level
    moved = np.where(accepted[:, None], proposed, z)
    return moved, np.where(accepted, reached, values), float(accepted.mean())
