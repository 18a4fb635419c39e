"""LOWER, a certified lower bound: the mean score of prior draws, counted one item a draw.

By Markov's inequality pi(S) = P(s >= tau) <= E_pi[s] / tau, so a limit on the mean score is a limit on the mass. It
does not know items, scores or models: two counts come in.
"""

from __future__ import annotations

import math

from leadline.information import (
    CONFIDENCE,
    Bits,
    Bound,
    clopper_pearson_lower,
    clopper_pearson_upper,
    surprisal,
)

PAIRS = 4  # pairs that a run draws for every prior draw that is counted on all items until it has missed too many


def lower(hits: int, draws: int, threshold: float, confidence: float = CONFIDENCE, prior: str = "") -> Bound:
    """D >= log2(threshold) - log2(upper limit of E_pi[s]) from `hits` of `draws` independent pairs (z, item).

    hits, draws: for each pair, z is drawn from the prior and one item uniformly among the n test items, afresh and
                 independently; a hit is an item that this z gets right
    threshold:   tau in 0..1; where items are right or wrong, the share ceil(tau n) / n itself, which is the same S
    Only `lower` is filled; its interval is that of log2(threshold) - log2 E_pi[s], two-sided. ValueError: a threshold
    outside (0, 1], more hits than draws. Source: docs/measurement.md, bounds, LOWER.

    **Why it holds.** Given z, a uniformly drawn item is right with probability s(z), so a pair hits with probability
    E_pi[s], and the number of hits is exactly binomial: Clopper-Pearson needs no variance and no large numbers.

    **Why one item a draw.** MC has to settle whether z lies in S. Even with the early exit that takes
    n - ceil(tau n) + 1 wrong items a draw, 5 of 40 at tau = 0.9, where one is enough here: the same forward passes
    certify log2(5) bits more and pay log2(1 / tau) for it. Several items of one z would not be independent, and would
    need a limit for a mean of unknown spread.

    **What it cannot do.** Prior draws that get a few items right put a floor under E_pi[s], and draws beyond it add
    nothing: the bound ends at log2(tau / E_pi[s]), while MC's goes on to D.
    """
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"a threshold is a score above 0 and at most 1, not {threshold}")
    two_sided = (1.0 + confidence) / 2.0
    share_part, threshold_part = surprisal(clopper_pearson_upper(hits, draws, confidence)), math.log2(threshold)
    low = threshold_part + surprisal(clopper_pearson_upper(hits, draws, two_sided))
    high = threshold_part + surprisal(clopper_pearson_lower(hits, draws, two_sided))
    paid = [("-log2 of the mean score", share_part), ("log2 of the threshold", threshold_part)]
    value = share_part + threshold_part
    if value < 0.0:
        paid.append(("no distance is below 0", -value))
    ends = (max(low, 0.0), max(high, 0.0))
    bits = Bits(max(value, 0.0), "certified lower", *ends, confidence, "LOWER", prior, tuple(paid))
    return Bound(None, None, bits, math.nan)
