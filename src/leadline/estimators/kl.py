"""KL: a bound from a divergence and a count, without the log ratio of a single draw.

If q does it with probability p and the prior with P, then d2(p, P) <= KL(q || pi) (data processing), so a closed-form
KL and a lower limit of p bound D = -log2 P. COND on the same draws is never looser in the population; this one stands
beside it as the check that needs least. It does not know what q is.
"""

from __future__ import annotations

import math

from scipy import optimize  # type: ignore[import-untyped]

from leadline.information import (
    CONFIDENCE,
    MIN_DRAWS,
    Bits,
    Bound,
    clopper_pearson_lower,
    clopper_pearson_upper,
    d2_at_distance,
    h2,
    surprisal,
)


def kl_limit_bits(p: float, kl_bits: float) -> float:
    """max{D : d2(p, 2^-D) <= kl_bits}, in bits, for 0 < p <= 1; at most (kl_bits + h2(p)) / p; inf at p = 0."""
    if not (0.0 <= p <= 1.0 and 0.0 <= kl_bits < math.inf):
        raise ValueError(f"need 0 <= p <= 1 and a finite KL of at least 0, not {p} and {kl_bits}")
    if p == 0.0:
        return math.inf
    if p == 1.0 or kl_bits == 0.0:
        return surprisal(p) + kl_bits
    # d2 grows in D from 0 at D = -log2 p, and (KL + h2(p)) / p drops only a positive term of it
    near, far = surprisal(p), (kl_bits + h2(p)) / p
    if d2_at_distance(p, far) <= kl_bits:
        return far
    if d2_at_distance(p, near) >= kl_bits:
        # a KL below the rounding of d2 near its zero
        return near
    return float(optimize.brentq(lambda bits: d2_at_distance(p, bits) - kl_bits, near, far, xtol=1e-12, rtol=1e-14))


def kl(hits: int, draws: int, kl_bits: float, confidence: float = CONFIDENCE, prior: str = "") -> Bound:
    """Certified upper bound on D from `hits` of `draws` fresh draws of q and its closed-form KL(q || pi) in bits.

    The estimate is the same function of hits / draws, its interval that of the two-sided Clopper-Pearson ends; no
    standard error, for the function is far from linear. ValueError below MIN_DRAWS draws.
    Source: docs/measurement.md, bounds, KL.
    """
    if draws < MIN_DRAWS:
        raise ValueError(f"a certified bound needs at least {MIN_DRAWS} draws of q, not {draws}")
    if hits == 0:
        return Bound(None, None, None, math.nan)
    two_sided = (1.0 + confidence) / 2.0
    low = kl_limit_bits(clopper_pearson_upper(hits, draws, two_sided), kl_bits)
    high = kl_limit_bits(clopper_pearson_lower(hits, draws, two_sided), kl_bits)

    def bits(p: float, kind: str) -> Bits:
        value, part = kl_limit_bits(p, kl_bits), surprisal(p)
        return Bits(value, kind, low, high, confidence, "KL", prior, (("-log2 p", part), ("divergence", value - part)))

    upper = bits(clopper_pearson_lower(hits, draws, confidence), "certified upper")
    return Bound(bits(hits / draws, "estimate"), upper, None, math.nan)
