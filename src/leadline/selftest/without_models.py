"""The rows that need no model: estimators, solver, coder and choice against closed forms (K1, K2, K3, K6, K7, K15).
Each is deterministic.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from leadline import information
from leadline.coder import Reader, Writer, uniform
from leadline.estimators import Cell, code_bound, cond, draw, importance, kl, lower, monte_carlo, splitting
from leadline.estimators.splitting import Schedule, generator
from leadline.information import Bits, Bound, Floats
from leadline.selftest.nulls import NULLS, reported
from leadline.selftest.planted import (
    Bools,
    allowed_failures,
    ball,
    half_space,
    measured_cond,
    measured_importance,
    measured_lower,
    measured_mc,
    measured_splitting,
    planned,
    split_mass,
    wide_ball,
)
from leadline.selftest.quadratic import BETAS, best, covariance, quadratic, trained
from leadline.selftest.row import Row, near, said

DIMS = 16


def k1() -> Row:
    """Every estimator that needs no text, on two regions."""
    parts, holds = [], True
    for region in (half_space(DIMS, 8.0), ball(DIMS, 8.0, 4.0)):
        bits, rng = region.distance_bits, np.random.default_rng(1)
        exact = measured_mc(region, rng, 20_000)
        bounds = [measured_cond(region, rng, 1024), measured_importance(region, rng, 1024)]
        split = measured_splitting(region, planned(region, 1), 1, 8)
        below = measured_lower(region, rng, 4000)
        holds &= near(exact, bits) and near(split, bits)
        holds &= all(_above(bound, bits) for bound in (*bounds, split))
        holds &= below.lower is not None and bool(below.lower.value <= bits)
        if region.name == "half-space":
            holds &= bounds[0].upper is not None and bool(bounds[0].upper.value <= bits + 1.0)
        numbers = (exact.estimate, split.estimate, bounds[0].upper, bounds[1].upper, below.lower)
        parts.append(f"{region.name}: {', '.join(map(said, numbers))}")
    truth = f"a half-space and a ball, both 8 bits away in {DIMS} dimensions: MC and SPLIT within 3 standard errors, "
    truth += "COND and IW not below, COND within 1 bit of the half-space, LOWER not above"
    return Row("K1", truth, "; ".join(parts), holds)


def k2() -> Row:
    """The solver's q, of independent coordinates and squeezed along every direction."""
    centre, hessian = quadratic(3, 6)
    betas, worst = BETAS[::3], [0.0, 0.0, 0.0]
    for directions in (0, len(centre)):
        found = trained(betas, centre, hessian, 1200 if directions else 700, directions=directions)
        for beta, q in zip(betas, found, strict=True):
            mean, precision = best(centre, hessian, beta)
            worst[0] = max(worst[0], float((q["mean"] - mean).norm() / mean.norm()))
            if directions:
                wanted = precision.inverse()
                off = (covariance(q) - wanted).abs().max() / wanted.diagonal().max()
            else:
                off = ((2 * q["log_scale"]).exp() * precision.diagonal() - 1).abs().max()
            place = 2 if directions else 1
            worst[place] = max(worst[place], float(off))
    words = f"off by at most {worst[0]:.2%} in the mean, {worst[1]:.2%} in the variances of independent coordinates, "
    words += f"{worst[2]:.2%} in a full covariance, at {len(betas)} betas"
    truth = "a quadratic loss under a Gaussian prior: the trained q within 2% of its closed form"
    return Row("K2", truth, words, max(worst) < 0.02)


def k3() -> Row:
    """Keys of three symbols out of eight: each is one of eight quantile intervals of a coordinate."""
    size, table = 3, uniform(8)
    keys = list(product(range(8), repeat=size))
    lengths, decoded = [], True
    for key in keys:
        writer = Writer()
        writer.put(list(key), table)
        message = writer.message()
        lengths.append(8 * len(message))
        decoded &= tuple(Reader(message).take(size, table).tolist()) == key
    # eight intervals of equal mass: four on either side of the median, numbered from the end of their tail
    cells = [
        Cell(np.full(size, 3), np.array(key) > 3, np.array([min(symbol, 7 - symbol) for symbol in key])) for key in keys
    ]
    lock = cells[100]
    middles = [draw(cell, np.full((1, size), 0.5))[0] for cell in cells]
    low, high = draw(lock, np.array([[0.0] * size, [1.0 - 2.0**-53] * size]))
    least, most = np.minimum(low, high), np.maximum(low, high)

    def opens(z: Floats) -> Bools:
        inside: Bools = ((z >= least) & (z <= most)).all(axis=-1)
        return inside

    opened = int(opens(np.stack(middles)).sum())
    bound = code_bound(lock, int(opens(draw(lock, np.random.default_rng(3).random((512, size)))).sum()), 512)
    bits = 3 * size
    holds = decoded and opened == 1 and max(lengths) <= 8 * math.ceil((bits + 2) / 8) and lock.bits == bits
    holds &= bound.estimate is not None and bound.estimate.value == bits and _above(bound, bits)
    found = f"{opened} of {len(keys)} keys opens, their messages take at most {max(lengths)} bits, "
    found += f"{said(bound.estimate)}, {said(bound.upper)}"
    truth = f"a lock with a key of {size} symbols of 8, {bits} bits away: one key opens it, and its message is as "
    truth += "long, but for 2 bits and whole bytes"
    return Row("K3", truth, found, holds)


def k6() -> Row:
    """How often certified limits are on the wrong side."""
    tries, wrong = 300, {"MC upper": 0, "MC lower": 0, "LOWER": 0, "COND": 0, "IW": 0}
    region, near = wide_ball(20.0), half_space(1, 4.0)
    silent = 0
    for seed in range(tries):
        rng = np.random.default_rng(seed)
        counted, paired = measured_mc(near, rng, 512), measured_lower(near, rng, 512)
        weighed = {"COND": measured_cond(region, rng, 256), "IW": measured_importance(region, rng, 256)}
        wrong["MC upper"] += counted.upper is not None and counted.upper.value < near.distance_bits
        wrong["MC lower"] += counted.lower is not None and counted.lower.value > near.distance_bits
        wrong["LOWER"] += paired.lower is not None and paired.lower.value > near.distance_bits
        silent += weighed["COND"].upper is None
        for name, bound in weighed.items():
            wrong[name] += bound.upper is not None and bound.upper.value < region.distance_bits
    most = allowed_failures(tries)
    found = f"wrong: {', '.join(f'{name} {count}' for name, count in wrong.items())} of {tries}"
    truth = f"95% limits of {tries} simulated measurements: each on the wrong side at most {most} times, which a "
    truth += "rate of 5% exceeds once in a thousand"
    return Row("K6", truth, found, max(wrong.values()) <= most and silent == 0)


def k7() -> Row:
    """Restarts of nothing, the best of which is judged on items that did not choose it."""
    fair, foul, most = reported(0, "test"), reported(0, "validation"), allowed_failures(NULLS)
    found = f"{fair} called findings on test items; {foul} where the items that chose are asked"
    truth = f"{NULLS} behaviours with nothing to find: at most {most} findings on test items, more on those that chose"
    return Row("K7", truth, found, fair <= most < foul)


def k15() -> Row:
    """q = pi, and the degenerate case of whatever draws otherwise: nothing may differ from counting."""
    region, draws = half_space(2, 4.0), 4096
    z = np.random.default_rng(5).standard_normal((draws, 2))
    hit, nothing = region.contains(z), np.zeros(draws)
    hits = int(hit.sum())
    wanted = monte_carlo(hits, draws)
    whole = Cell(np.zeros(2, np.int64), np.zeros(2, bool), np.zeros(2, np.int64))
    bounds = {
        "COND": cond(information.log_ratio_bits(z, np.zeros(2), np.ones(2)), hit, 0.0),
        "IW": importance(nothing, hit, 0.0),
        "KL": kl(hits, draws, 0.0),
        "CODE": code_bound(whole, hits, draws),
    }
    off = [_apart(bound.estimate, wanted.estimate) for bound in bounds.values()]
    off += [_apart(bound.upper, wanted.upper) for bound in bounds.values()]
    schedule, runs = Schedule(2, 2048, 1, (0.0,), ()), (1, 2)
    particles = np.concatenate([generator(5, run, 0).standard_normal((2048, 2)) for run in runs])
    counted = monte_carlo(int(region.contains(particles).sum()), len(particles))
    split = splitting([split_mass(region, schedule, 5, run) for run in runs])
    off += [_apart(split.estimate, counted.estimate), _apart(lower(hits, draws, 1.0).lower, wanted.lower)]
    found = f"{said(wanted.estimate)}; {', '.join(bounds)}, SPLIT and LOWER differ by at most {max(off):.0e} bits"
    truth = "q is the prior, a cell is everything, one level, one item: every estimator gives the answer of MC"
    return Row("K15", truth, found, max(off) < 1e-9 and near(wanted, region.distance_bits))


def _above(bound: Bound, truth: float) -> bool:
    """The upper limit is there, and not below the truth."""
    return bound.upper is not None and bool(bound.upper.value >= truth)


def _apart(one: Bits | None, other: Bits | None) -> float:
    """How far two numbers are from each other, in bits; inf where one is missing."""
    return math.inf if one is None or other is None else abs(one.value - other.value)
