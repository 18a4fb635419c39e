"""COND: the workhorse. What the draws of q that do it paid, measured on those draws.

For any q, Jensen's inequality on pi(S) = p E_q[pi / q | S] gives D <= -log2 p + E_q[log2 q / pi | S] with p = q(S).
It does not know what q, S or a draw is: log ratios, hits and one divergence come in, bits go out.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from leadline.estimators.monte_carlo import monte_carlo
from leadline.information import (
    BITS_PER_NAT,
    CONFIDENCE,
    MIN_DRAWS,
    Bits,
    Bound,
    Floats,
    clopper_pearson_lower,
    student_quantile,
    surprisal,
)

FEW = 5
DISAGREEMENT_STDERRS = 8.0
MEAN_PART = "conditional log ratio"


def cond(
    log_ratio_bits: ArrayLike, hit: ArrayLike, kl_bits: float, confidence: float = CONFIDENCE, prior: str = ""
) -> Bound:
    """Certified upper bound on D from fresh draws z of q.

    log_ratio_bits: (n,) log2 q(z) / pi(z) of every draw, misses too, in bits
    hit:            (n,) whether the draw does it
    kl_bits:        closed-form KL(q || pi) of the same q, in bits
    ValueError: fewer than MIN_DRAWS draws, log ratios that are not finite or do not average to kl_bits (other units,
    another q, or its mean in place of draws). No hit: nothing is said (all fields None).
    Source: docs/measurement.md, bounds, COND.

    **The limit.** With delta = 1 - confidence, p at its Clopper-Pearson limit p_low and the conditional mean
    mu = E_q[log ratio | S] at a one-sided limit, delta / 2 each. Where kl_bits = 0, q is pi and every ratio is 0, so p
    takes the whole delta and this is MC's upper limit. That rule reads the divergence and never the draws.

    **The mean.** R = log ratio - KL has mean 0 under q, so mu = KL + (E[1_S R] - b E[R]) / p for every b; b is the
    regression slope, and n hits of n draws give mu = KL to the last digit. The residuals e = 1_S (log ratio - mu) - b R
    average to 0 at the estimate and give its standard error; the share of hits cancels from the t statistic.

    **Few hits or few misses.** The residuals hold only as much as the rarer outcome shows, so Student's t has
    min(hits, misses) - 1 degrees of freedom. Below FEW of either no t is trusted: where all draws hit, the slope is 1,
    the residuals vanish, and a limit without an error is too low in up to a third of the cases. There mu's limit is the
    Cauchy-Schwarz one, KL + sd(R) sqrt((1 - p_low) / p_low): true of any law of R and any S once p >= p_low, since
    |E[R 1_S]| <= sd(R) sqrt(p (1 - p)). sd(R) comes from all draws. The t is trusted because R is, for Gaussian q and
    pi, a quadratic form in normals, whose tails are exponential; simulated coverage is in tests/test_statistics.py.

    **Never looser than KL** (population values). KL = p E[L | S] + (1 - p) E[L | miss], L the log ratio, and Jensen
    on the misses gives E[L | miss] >= log2((1 - p) / (1 - P)) >= log2((1 - p) / (1 - 2^-C)) with P = pi(S) and C the
    COND value, C >= -log2 P. Hence d2(p, 2^-C) = p E[L | S] + (1 - p) log2((1 - p) / (1 - 2^-C)) <= KL, so C is one
    of the D over which the KL bound takes its maximum. In a finite sample the smaller of two 95% limits is no 95%
    limit: COND is the reported one, whatever KL says beside it.
    """
    ratio, is_hit = np.asarray(log_ratio_bits, np.float64), np.asarray(hit, bool)
    check_draws(ratio, is_hit, kl_bits)
    draws, hits = int(is_hit.size), int(is_hit.sum())
    if hits == 0:
        return Bound(None, None, None, math.nan)
    if kl_bits == 0.0:
        return _brute_force(hits, draws, confidence, prior)

    excess = ratio - kl_bits
    share, variance = hits / draws, float(excess.var())
    slope = 1.0 if hits == draws or variance == 0.0 else share * float(ratio[is_hit].var()) / variance
    mean = kl_bits + float(excess[is_hit].sum() / draws - slope * excess.mean()) / share
    residual = np.where(is_hit, ratio - mean, 0.0) - slope * excess

    count = max(min(hits, draws - hits), FEW)
    shrinkage = count / (count - 1)
    p_low = clopper_pearson_lower(hits, draws, hit_confidence(kl_bits, confidence))
    spread = math.sqrt(float(np.mean(excess * excess)))
    if min(hits, draws - hits) < FEW:
        mean_limit = kl_bits + spread * math.sqrt((1.0 - p_low) / p_low)
    else:
        mean_stderr = math.sqrt(shrinkage * float(residual @ residual)) / hits
        mean_limit = mean + student_quantile((1.0 + confidence) / 2.0, count - 1) * mean_stderr

    # influence of each draw on -log2 p + mu, and of one unseen miss at the lowest ratio, so that a perfect score
    # does not claim to know the bound to the last digit
    influence = (residual - (is_hit - share) * BITS_PER_NAT) / share
    unseen = BITS_PER_NAT - slope * float(excess.min()) / share
    stderr = math.sqrt(shrinkage * float(influence @ influence) + unseen * unseen) / draws
    if hits < FEW:
        # too few hits to show their own spread: lend them that of all draws
        stderr = math.hypot(spread, BITS_PER_NAT) / math.sqrt(hits)
    half = student_quantile((1.0 + confidence) / 2.0, degrees_of_freedom(hits, draws)) * stderr
    value = surprisal(share) + mean
    low, high = value - half, value + half

    def bits(p: float, mean_part: float, kind: str) -> Bits:
        paid = (("-log2 p", surprisal(p)), (MEAN_PART, mean_part))
        return Bits(surprisal(p) + mean_part, kind, low, high, confidence, "COND", prior, paid)

    return Bound(bits(share, mean, "estimate"), bits(p_low, mean_limit, "certified upper"), None, stderr)


def promised_bits(log_ratio_bits: ArrayLike, hit: ArrayLike, kl_bits: float, draws: int) -> float:
    """What COND is going to say of `draws` fresh draws, told from a few on other items: to choose a q by, no bound.

    log_ratio_bits, hit, kl_bits: as `cond`, of any number of draws
    p stands where its limit will be if fresh draws hit as often as these did: a limit from these few would favour a q
    that nearly always hits, whatever it pays for that. But where these leave it open whether 2 FEW hits will come at
    all, p is their own lower limit, and the conditional mean is at its Cauchy-Schwarz limit, where it may have to stand
    (of 10 that are expected, fewer than 5 come in 3%); likewise with misses. inf without a hit.
    """
    ratio, is_hit = np.asarray(log_ratio_bits, np.float64), np.asarray(hit, bool)
    hits, tried = int(is_hit.sum()), int(is_hit.size)
    if hits == 0:
        return math.inf
    p = clopper_pearson_lower(hits, tried)
    enough = p * draws >= 2 * FEW
    if enough:
        p = clopper_pearson_lower(round((hits + 0.5) / (tried + 1) * draws), draws)
    if kl_bits == 0.0:
        return surprisal(p)
    if enough and (1.0 - hits / tried) * draws >= 2 * FEW:
        return surprisal(p) + float(ratio[is_hit].mean())
    spread = math.sqrt(float(np.mean((ratio - kl_bits) ** 2)))
    return surprisal(p) + kl_bits + spread * math.sqrt((1.0 - p) / p)


def hit_confidence(kl_bits: float, confidence: float = CONFIDENCE) -> float:
    """The level that p's limit has within a COND bound at `confidence`: half of delta, or all of it where q is pi."""
    return confidence if kl_bits == 0.0 else (1.0 + confidence) / 2.0


def degrees_of_freedom(hits: int, draws: int) -> int:
    """Of the t statistics here: one less than the count of the rarer outcome, taken as at least FEW."""
    return max(min(hits, draws - hits), FEW) - 1


def _brute_force(hits: int, draws: int, confidence: float, prior: str) -> Bound:
    """q = pi: the MC answer under COND's name. MC's lower limit is left to MC."""
    found = monte_carlo(hits, draws, confidence, prior)

    def renamed(bits: Bits | None, kind: str) -> Bits | None:
        if bits is None:
            return None
        paid = (*bits.ledger, (MEAN_PART, 0.0))
        return Bits(bits.value, kind, bits.low, bits.high, confidence, "COND", prior, paid)

    estimate, upper = renamed(found.estimate, "estimate"), renamed(found.upper, "certified upper")
    return Bound(estimate, upper, None, found.stderr_bits)


def check_draws(ratio: Floats, is_hit: np.ndarray, kl_bits: float) -> None:
    """ValueError unless these are log ratios of fresh draws of the q whose divergence is given: see `cond`."""
    if ratio.ndim != 1 or ratio.shape != is_hit.shape:
        raise ValueError(f"need one log ratio and one hit a draw, not shapes {ratio.shape} and {is_hit.shape}")
    if ratio.size < MIN_DRAWS:
        raise ValueError(f"a certified bound needs at least {MIN_DRAWS} draws of q, not {ratio.size}")
    if not (np.isfinite(ratio).all() and 0.0 <= kl_bits < math.inf):
        raise ValueError("log ratios and their KL must be finite, and the KL at least 0")
    if kl_bits == 0.0 and np.abs(ratio).max() > 1e-6:
        raise ValueError("a KL of 0 means q = pi, and then every log ratio is 0")
    off = abs(float(ratio.mean()) - kl_bits)
    allowed = DISAGREEMENT_STDERRS * float(ratio.std(ddof=1)) / math.sqrt(ratio.size) + 1e-6 * (1.0 + kl_bits)
    if off > allowed:
        raise ValueError(
            f"the log ratios average to {ratio.mean():.6g} bits and their KL is {kl_bits:.6g}: not of the same q, "
            "or not in the same units, or not of draws of q"
        )
