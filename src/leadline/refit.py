"""refit: a Gaussian of any covariance, from the draws that hit and what the prior says of them (cross-entropy method).

Weighted by prior over proposal, the hits are a sample of the prior within S, and among Gaussians the one with that
sample's moments is nearest to it (Rubinstein, European Journal of Operational Research 99, 1997; its smoothed updates:
de Boer, Kroese, Mannor and Rubinstein, Annals of Operations Research 134, 2005). COND exceeds D by exactly
KL(q within S || prior within S), so a q that is near there is a tight one. It knows no model and no item: draws, hits
and Gaussians come in, a Gaussian goes out. It certifies nothing: whoever quotes its q draws afresh.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray

from leadline.information import (
    Floats,
    Squeeze,
    clopper_pearson_lower,
    gaussian_kl_bits,
    log_ratio_bits,
    surprisal,
)

ROUNDS = 3  # of draws, each from what the draws so far have taught
MOST_DIMENSIONS = 30  # a covariance of more of them asks for more hits than a round has
SHARES = (1.0, 0.75, 0.5, 0.25)  # of the fit's way from the prior: which is certified, the draws say


@final
@dataclass(frozen=True)
class Gaussian:
    """N(mean, covariance) in whitened coordinates, where the prior is N(0, I).

    mean: (d,);  covariance: (d, d), positive definite
    """

    mean: Floats
    covariance: Floats

    @cached_property
    def squeeze(self) -> Squeeze:
        """The same width as a squeeze of standard normal noise: along the d principal axes, by their deviations."""
        variances, axes = np.linalg.eigh(self.covariance)
        return Squeeze(axes.T, np.sqrt(variances))

    @property
    def kl_bits(self) -> float:
        """KL(q || prior)."""
        one = np.ones_like(self.mean)
        return float(sum(part.sum() for part in gaussian_kl_bits(self.mean, one))) + self.squeeze.kl_bits(one)

    def log_ratio_bits(self, z: Floats) -> Floats:
        """(n,) log2 q / prior of (n, d) draws."""
        return log_ratio_bits(z, self.mean, 1.0, self.squeeze)

    def tempered(self, share: float) -> Gaussian:
        """The Gaussian proportional to q^share prior^(1 - share); 1 is q, 0 the prior."""
        precision = share * np.linalg.inv(self.covariance)
        covariance = np.linalg.inv(precision + (1.0 - share) * np.eye(len(self.mean)))
        return Gaussian(covariance @ precision @ self.mean, (covariance + covariance.T) / 2.0)


@final
@dataclass(frozen=True)
class Round:
    """Draws of one q. z: (n, d);  hit: (n,) whether each does it"""

    q: Gaussian
    z: Floats
    hit: NDArray[np.bool_]


def refit(rounds: Sequence[Round]) -> Gaussian:
    """The next q: moments of the hits of all rounds as the prior weighs them, mixed with the last q, which counts as so
    many draws as the new one has parameters, d (d + 3) / 2, against the hits' effective sample size. Without a hit
    nothing is learnt, and it is the last q."""
    last = rounds[-1].q
    z, log2_weight = _pooled(rounds)
    if not len(z):
        return last
    weight = np.exp2(log2_weight - log2_weight.max())
    weight /= weight.sum()
    size, dims = 1.0 / float(weight @ weight), len(last.mean)
    trust = size / (size + dims * (dims + 3) / 2.0)
    mean = weight @ z
    apart, step = z - mean, mean - last.mean
    # the moments of a mixture: what lies between the two means is width as well
    within = trust * (apart.T * weight) @ apart + (1.0 - trust) * last.covariance
    return Gaussian(last.mean + trust * step, within + trust * (1.0 - trust) * np.outer(step, step))


def loosened(q: Gaussian, rounds: Sequence[Round], draws: int) -> Gaussian:
    """q, or one on its way to the prior: the one whose COND bound from so many draws promises to be the least, judged
    on the draws that there are. A q that fits S snugly hits nearly always and pays for it; one that is wider hits less
    often, is as the prior within S, and needs more draws."""
    told = [(_promised_bits(one, rounds, draws), -share, one) for share in SHARES for one in [q.tempered(share)]]
    return min(told, key=lambda one: one[:2])[2]


def _promised_bits(q: Gaussian, rounds: Sequence[Round], draws: int) -> float:
    """-log2 of p at its lower limit and the mean log ratio of the hits, by the hits of other proposals."""
    z, log2_weight = _pooled(rounds)
    if not len(z):
        return math.inf
    ratio = q.log_ratio_bits(z)
    weight = np.exp2(log2_weight + ratio)
    p = min(1.0, float(weight.sum()) / sum(len(one.z) for one in rounds))
    p_low = clopper_pearson_lower(round(p * draws), draws)
    return surprisal(p_low) + float(weight @ ratio) / float(weight.sum()) if p_low > 0.0 else math.inf


def _pooled(rounds: Sequence[Round]) -> tuple[Floats, Floats]:
    """(hits, d) the hits of all rounds and (hits,) log2 prior / proposal, where the proposal is the mixture of all that
    were drawn from: a draw that its own q holds for far out is common under another (the balance heuristic of Veach
    and Guibas, SIGGRAPH 1995)."""
    z = np.concatenate([one.z[one.hit] for one in rounds])
    draws = np.array([len(one.z) for one in rounds], np.float64)
    ratios = [one.q.log_ratio_bits(z) + share for one, share in zip(rounds, np.log2(draws / draws.sum()), strict=True)]
    return z, -np.logaddexp2.reduce(ratios, axis=0)
