"""MC: brute force over the prior. Count the draws of pi that do it.

Exact both ways: its limits close in on D itself as draws grow, which no other estimator here promises. It reaches as
far as log2(draws). It does not know what a draw is.
"""

from __future__ import annotations

import math

from leadline.information import (
    BITS_PER_NAT,
    CONFIDENCE,
    Bits,
    Bound,
    clopper_pearson_lower,
    clopper_pearson_upper,
    surprisal,
)


def monte_carlo(hits: int, draws: int, confidence: float = CONFIDENCE, prior: str = "") -> Bound:
    """Bounds on D = -log2 pi(S) from `hits` of `draws` independent draws of the prior.

    upper and lower are one-sided Clopper-Pearson limits, each at `confidence`; the estimate's interval is the
    two-sided one. Without a hit there is only the lower bound, about log2(draws / 3).
    Source: docs/measurement.md, bounds, MC.
    """
    lower_value = surprisal(clopper_pearson_upper(hits, draws, confidence))
    two_sided = (1.0 + confidence) / 2.0
    low = surprisal(clopper_pearson_upper(hits, draws, two_sided))
    high = surprisal(clopper_pearson_lower(hits, draws, two_sided))

    def bits(value: float, kind: str) -> Bits:
        return Bits(value, kind, low, high, confidence, "MC", prior, (("-log2 p", value),))

    lower = bits(lower_value, "certified lower")
    if hits == 0:
        return Bound(None, None, lower, math.nan)
    share = hits / draws
    upper = bits(surprisal(clopper_pearson_lower(hits, draws, confidence)), "certified upper")
    stderr = math.sqrt((1.0 - share) / (share * draws)) * BITS_PER_NAT
    return Bound(bits(surprisal(share), "exact"), upper, lower, stderr)
