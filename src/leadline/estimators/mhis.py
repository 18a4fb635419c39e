"""MHIS's estimate: the prior's mass of S from chains that walk through a tempered prior (Wu and Hilton, 2410.13211).

An estimate and no bound, in either direction: the draws are dependent, the chains may not have got everywhere, and the
weights are known up to a factor, so that their own mean stands in for it. It does not know what a text or a logit is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from leadline.information import BITS_PER_NAT, CONFIDENCE, Bits, Bound, student_quantile


def mhis(log_weight_nats: ArrayLike, hit: ArrayLike, confidence: float = CONFIDENCE, prior: str = "") -> Bound:
    """Estimate of D from what independent chains met of a q proportional to pi / w.

    log_weight_nats: (chains, steps) log of w = c pi / q in nats, with any constant c: -M / T where q is proportional
                     to pi exp(M / T)
    hit:             (chains, steps) whether what the chain met there does it
    No hit: nothing is said. ValueError: fewer than 2 chains, shapes that do not fit, weights that are not finite.
    Source: arXiv 2410.13211, section 3.1.

    pi(S) = E_q[1(S) w] / E_q[w], each mean replaced by that over all visits. Its standard error comes from the chains,
    which are independent as their visits are not: that of a ratio of means, carried through the logarithm, with one
    degree of freedom less than chains. It knows nothing of what no chain has met, and the walk can fail both ways, as
    E_q[w] is a harmonic mean: carried by texts that the prior likes and q avoids. Where no chain meets them the share
    comes out too large and D too small, all chains agreeing; where every visit is a hit, 0 bits with no error at all.
    Where a chain has not left them yet, its weights drown all others and D is too large.
    """
    log_weight, is_hit = np.asarray(log_weight_nats, np.float64), np.asarray(hit, bool)
    if log_weight.ndim != 2 or log_weight.shape != is_hit.shape or log_weight.shape[0] < 2 or not log_weight.size:
        raise ValueError(f"need (chains, steps) of two chains or more, not {log_weight.shape} and {is_hit.shape}")
    if not np.isfinite(log_weight).all():
        raise ValueError("log weights must be finite")
    if not is_hit.any():
        return Bound(None, None, None, math.nan)
    chains = len(log_weight)
    hits_only = np.where(is_hit, log_weight, -math.inf)
    # each set by its own largest weight: the two may lie further apart than a float reaches
    above = np.exp(hits_only - hits_only.max()).sum(1)
    below = np.exp(log_weight - log_weight.max()).sum(1)
    fall_nats = float(log_weight.max() - hits_only.max() + math.log(below.sum()) - math.log(above.sum()))
    value = max(fall_nats, 0.0) * BITS_PER_NAT
    residual = above / above.sum() - below / below.sum()
    stderr = math.sqrt(chains / (chains - 1) * float(residual @ residual)) * BITS_PER_NAT
    half = student_quantile((1.0 + confidence) / 2.0, chains - 1) * stderr
    paid = (("-log2 of the hits' share of the weights", value),)
    estimate = Bits(value, "estimate", max(value - half, 0.0), value + half, confidence, "MHIS", prior, paid)
    return Bound(estimate, None, None, stderr)
