"""Markov's inequality over independent runs: from unbiased estimates of a mass, however wild, to a certified bound.

What IW and SPLIT have in common. It does not know where the estimates come from, and takes it on trust that they are
independent, not negative, and unbiased for one and the same mass.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from leadline.information import CONFIDENCE, Bits


def markov(
    log2_masses: ArrayLike, low: float, high: float, confidence: float, estimator: str, prior: str
) -> Bits | None:
    """Certified upper bound on D = -log2 pi(S); None where an estimate is 0, which bounds nothing.

    log2_masses: (R,) log2 Y_r of independent Y_r >= 0 with E[Y_r] = pi(S); -inf for 0
    low, high:   interval of the point estimate, in bits
    ValueError: no estimate, or NaN among them.
    Source: docs/measurement.md, bounds, IW.

    The product of independent Y_r has mean pi(S)^R, so P(prod_r Y_r >= pi(S)^R / delta) <= delta by Markov's
    inequality. Otherwise pi(S)^R > delta prod_r Y_r, which is

        D < -mean_r log2 Y_r + log2(1 / delta) / R.

    The smallest of them alone, -log2 min_r Y_r in place of the mean, holds by the same inequality and is never lower.

    Nothing was asked of the law of Y_r but its mean: neither a variance nor many draws. The Y_r need not be alike, so
    batches may differ in length. R is fixed beforehand: more runs cost less in the second term, and more in the first,
    as the logarithm of a mass that varies is lower on average than that of its mean.
    """
    masses = np.asarray(log2_masses, np.float64)
    if masses.ndim != 1 or not masses.size or np.isnan(masses).any():
        raise ValueError(f"need one log2 mass a run and none of them NaN, not {masses}")
    mean = float(masses.mean())
    if math.isinf(mean):
        return None
    value = max(-mean - math.log2(1.0 - confidence) / masses.size, 0.0)  # no mass is above 1
    paid = tuple(markov_ledger(value, masses.size, confidence))
    return Bits(value, "certified upper", low, high, confidence, estimator, prior, paid)


def markov_ledger(value: float, runs: int, confidence: float = CONFIDENCE) -> list[tuple[str, float]]:
    """What `value` bits of `markov` were paid for."""
    if value == 0.0:
        return [("no distance is below 0", 0.0)]
    charge = -math.log2(1.0 - confidence) / runs
    return [("-log2 of the masses, on average", value - charge), (f"confidence from {runs} runs", charge)]


def log2_mean(log2_values: ArrayLike) -> float:
    """log2 of the mean of numbers given by their log2, without underflow; -inf where all are 0."""
    values = np.asarray(log2_values, np.float64)
    top = float(values.max())
    return top if math.isinf(top) else top + math.log2(float(np.exp2(values - top).mean()))
