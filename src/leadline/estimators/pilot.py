"""The pilot of SPLIT: a first run that looks for levels and step sizes, and whose own answer is no bound.

It chooses each level from the particles that it then counts, which is a little biased; therefore it only makes the
`Schedule` that production runs are held to. It does not know what phi computes.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Literal

import numpy as np

from leadline.estimators.splitting import Phi, Schedule, evaluate, generator, move, multiply
from leadline.information import Floats

PARTICLES = 150
MOVES = 5
MAX_LEVELS = 500
SURVIVORS = 0.5
ACCEPTANCE = 0.3
FIRST_STEP = 0.5

Outcome = Literal["reached", "one level", "out of levels"]
SENTENCES: dict[Outcome, str] = {
    "reached": "the particles reached the target level",
    "one level": "all particles sit on one level, so no level above it can be chosen; S may still hold mass",
    "out of levels": "the target level was not reached within the levels allowed; S may be empty or farther",
}


@dataclass(frozen=True)
class Pilot:
    """What the pilot found.

    schedule:    for production runs; None unless the outcome is "reached"
    outcome:     one of SENTENCES, which say it in words
    level:       the highest level passed, -inf where none was
    log2_mass:   log2 of the mass above it, biased: for progress and plans, not for results
    evaluations: rows of phi
    """

    schedule: Schedule | None
    outcome: Outcome
    level: float
    log2_mass: float
    evaluations: int

    @property
    def sentence(self) -> str:
        return SENTENCES[self.outcome]


def pilot(
    phi: Phi,
    dims: int,
    seed: int,
    target: float = 0.0,
    particles: int = PARTICLES,
    moves: int = MOVES,
    max_levels: int = MAX_LEVELS,
) -> Pilot:
    """Choose levels of about half of the particles each, up to `target`, and step sizes that accept about 0.3.

    S = {z : phi(z) > target}. dims: d of phi's rows. seed: of run 0, which the production runs' labels never use, so
    they may share it. A step size is steered after every move and frozen as the mean, over the logarithm, of the later
    half of a level's moves; a level starts with its predecessor's.
    """
    z = generator(seed, 0, 0).standard_normal((particles, dims))
    values = evaluate(phi, z, -math.inf)
    levels: list[float] = []
    steps: list[float] = []
    step, log2_mass, evaluations = FIRST_STEP, 0.0, particles
    while True:
        reached = levels[-1] if levels else -math.inf
        level = next_level(values, target)
        if level is None:
            return Pilot(None, "one level", reached, log2_mass, evaluations)
        if len(levels) == max_levels:
            return Pilot(None, "out of levels", reached, log2_mass, evaluations)
        above = values > level
        levels.append(level)
        log2_mass += math.log2(above.mean())
        if level == target:
            schedule = Schedule(dims, particles, moves, tuple(levels), tuple(steps))
            return Pilot(schedule, "reached", level, log2_mass, evaluations)
        rng = generator(seed, 0, len(levels))
        parents = multiply(int(above.sum()), particles, rng)
        z, values = z[above][parents], values[above][parents]
        used = []
        for _ in range(moves):
            used.append(math.log(step))
            z, values, accepted = move(z, values, level, step, phi, rng)
            step = min(step * math.exp(accepted - ACCEPTANCE), 1.0)
        step = math.exp(sum(used[moves // 2 :]) / len(used[moves // 2 :]))
        steps.append(step)
        evaluations += moves * particles


def next_level(values: Floats, target: float) -> float | None:
    """The value, or the target, with the share of `values` above it nearest to one half; None where there is no choice.

    Candidates are the distinct values below the target but for the largest of all, so that somebody survives and, as
    survival is strict, ties stand or fall together. The target is taken as soon as half of the particles are above it,
    or where it is the nearest to half.
    """
    finite = np.maximum(values, -sys.float_info.max)
    distinct = np.unique(finite)
    candidates = [float(v) for v in distinct[:-1] if v < target]
    if distinct[-1] > target:
        candidates.append(target)
    if not candidates:
        return None
    # of two equally near the higher, which is the one nearer to the end
    return min(reversed(candidates), key=lambda level: abs(float(np.mean(values > level)) - SURVIVORS))
