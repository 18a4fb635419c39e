"""Bits: what they are, how they are counted, and how sure a count is.

Logarithms, divergences of Bernoulli and Gaussian laws, limits of a binomial share, weights of sizes and families, and
the three small records (`Bits`, `Bound`, `Distance`) that carry a number together with all that makes it believable.

It does not know models, behaviours, files or torch; it imports nothing of ours. Formulas: docs/measurement.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # type: ignore[import-untyped]

BITS_PER_NAT = 1.0 / math.log(2.0)
NATS_PER_BIT = math.log(2.0)
CONFIDENCE = 0.95
MIN_DRAWS = 64
"""A share of draws of q enters a certified bound only from this many fresh draws on (docs/measurement.md, bounds)."""

KINDS = ("exact", "certified upper", "certified lower", "estimate")
LEDGER_TOLERANCE_BITS = 1e-6

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bits:
    """One number in bits with all that makes it believable.

    value:      bits; may be inf, never NaN
    kind:       one of KINDS
    low, high:  interval at `confidence`; of a certified bound, the interval of its point estimate (value is the limit)
    estimator:  "MC", "COND", "KL", "PREFILL", "NULL" or words for a combination
    prior:      the measure that the bits are counted under
    ledger:     (what was paid for, bits) pairs that sum to `value`; empty where nothing is itemised
    """

    value: float
    kind: str
    low: float
    high: float
    confidence: float
    estimator: str
    prior: str
    ledger: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        side = {"certified upper": "at most ", "certified lower": "at least "}.get(self.kind, "")
        value = {"certified upper": at_most, "certified lower": at_least}.get(self.kind, "{:.1f}".format)(self.value)
        of = "estimate " if side else ""
        span = "" if self.low == self.high else f"; {of}{self.low:.1f} to {self.high:.1f} at {self.confidence:.0%}"
        return f"{side}{value} bits ({self.kind} by {self.estimator}{span}; prior: {self.prior})"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {KINDS}")
        if math.isnan(self.value):
            raise ValueError("a number of bits may be infinite but not NaN")
        if self.ledger and math.isfinite(self.value):
            paid = math.fsum(bits for _, bits in self.ledger)
            if not abs(paid - self.value) <= LEDGER_TOLERANCE_BITS:
                raise ValueError(f"the ledger sums to {paid} bits and the value is {self.value}")


@dataclass(frozen=True)
class Bound:
    """What one estimator says of one cell; None where it says nothing.

    estimate:    of the distance (MC) or of the bound's population value (COND, KL), with its interval
    upper:       certified upper limit
    lower:       certified lower limit
    stderr_bits: standard error of the estimate over draws, NaN where there is no estimate
    """

    estimate: Bits | None
    upper: Bits | None
    lower: Bits | None
    stderr_bits: float


@dataclass(frozen=True)
class Distance:
    """The elicitation distance of one behaviour in one family of interventions.

    upper, lower:  certified bounds, size choice paid; None where there is none
    estimate:      two-sided, by brute force over the prior; None where no prior draw hit
    size:          the size that the upper bound was found at
    excess:        D(control) - D(behaviour) by the same bound at the same size, mean over the controls matched on
                   direct cost, where there are none over all
    whom:          what `excess` is a difference to, in words
    rank:          (1 + number of controls at most as far as the behaviour, 1 + number of controls); unreached ones are
                   counted as farther, so it may be as many places worse
    sentence:      the same in plain words
    unreached_controls: controls run at that size without a bound, which says nothing of how far they lie
    reached:       the smallest size whose prompt reaches tau on held-out items (0: unasked), bound or no bound
    promised:      bits that draws on validation items promised, the size's choice paid: what families are chosen by.
                   inf where none were drawn
    flops:         floating point operations of the training or search behind the upper bound; bits say nothing of them
    """

    upper: Bits | None
    lower: Bits | None
    estimate: Bits | None
    family: str
    prior: str
    size: int | None
    sentence: str = ""
    excess: Bits | None = None
    rank: tuple[int, int] | None = None
    unreached_controls: int = 0
    whom: str = "its controls"
    reached: int | None = None
    promised: float = math.inf
    flops: float = 0.0

    @property
    def unbounded(self) -> str:
        """What stands in an upper bound's place where there is none."""
        return "not broken" if self.reached is None else "no bound"


def surprisal(probability: float) -> float:
    """-log2 of a probability, in bits; inf at 0."""
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"a probability lies in 0..1, not {probability}")
    return -math.log2(probability) if probability > 0.0 else math.inf


def _log2_complement(probability: float) -> float:
    """log2(1 - p) without rounding 1 - p, -inf at 1."""
    return math.log1p(-probability) * BITS_PER_NAT if probability < 1.0 else -math.inf


def h2(p: float) -> float:
    """Entropy of a coin with bias p, in bits."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"a probability lies in 0..1, not {p}")
    if p in (0.0, 1.0):
        return 0.0
    return -p * math.log2(p) - (1.0 - p) * _log2_complement(p)


def d2(p: float, big_p: float) -> float:
    """Binary KL divergence d2(p, P) of a coin with bias p from one with bias P, in bits; inf where P rules p out."""
    if not (0.0 <= p <= 1.0 and 0.0 <= big_p <= 1.0):
        raise ValueError(f"probabilities lie in 0..1, not {p} and {big_p}")
    if p == big_p:
        return 0.0
    hit = p * (math.log2(p) + surprisal(big_p)) if p > 0.0 else 0.0
    miss = (1.0 - p) * (_log2_complement(p) - _log2_complement(big_p)) if p < 1.0 else 0.0
    return max(hit + miss, 0.0)


def d2_at_distance(p: float, distance_bits: float) -> float:
    """d2(p, 2^-D) for D > 0, which stays exact where 2^-D is below the smallest float."""
    if not (0.0 < p <= 1.0 and distance_bits >= 0.0):
        raise ValueError(f"need 0 < p <= 1 and D >= 0, not {p} and {distance_bits}")
    if p == 1.0:
        return distance_bits
    if distance_bits == 0.0:
        return math.inf
    # log2(1 - 2^-D): expm1 keeps its digits where D is near 0
    log2_miss = math.log2(-math.expm1(-distance_bits * NATS_PER_BIT))
    return max(p * distance_bits - h2(p) - (1.0 - p) * log2_miss, 0.0)


@dataclass(frozen=True)
class Squeeze:
    """What makes a Gaussian of independent coordinates narrower, or wider, along a few directions: its noise e becomes
    e - Q' (1 - a) Q e before it is scaled.

    directions: (r, d) Q, orthonormal rows;  factors: (r,) a, positive; 1 changes nothing
    """

    directions: Floats
    factors: Floats

    def kl_bits(self, scale: Floats) -> float:
        """What it adds to the divergence of N(mean, diag scale^2) from N(0, I); below 0 where it undoes a width."""
        stretched = np.square(self.directions * scale).sum(1)
        trace = float(((self.factors**2 - 1.0) * stretched).sum()) / 2.0
        return (trace - float(np.log(self.factors).sum())) * BITS_PER_NAT

    def unsqueezed(self, noise: Floats) -> Floats:
        """(..., d) the independent noise behind (..., d) squeezed noise."""
        along = noise @ self.directions.T
        return noise + (along * (1.0 / self.factors - 1.0)) @ self.directions


def gaussian_kl_bits(mean: ArrayLike, scale: ArrayLike) -> tuple[Floats, Floats]:
    """KL of N(mean, scale^2) from N(0, 1), one pair a coordinate: the location part m^2 / 2 and the width part, bits.

    mean, scale: any shapes that broadcast; scale is a standard deviation and positive. The KL is the sum of all.
    """
    mean_, scale_ = np.broadcast_arrays(np.asarray(mean, np.float64), np.asarray(scale, np.float64))
    _need_positive(scale_)
    excess = scale_ - 1.0
    # (s^2 - 1) / 2 - log s, written around s = 1 where both terms are small
    width = np.maximum(excess + excess * excess / 2.0 - np.log1p(excess), 0.0)
    return mean_ * mean_ / 2.0 * BITS_PER_NAT, width * BITS_PER_NAT


def log_ratio_bits(z: ArrayLike, mean: ArrayLike, scale: ArrayLike, squeeze: Squeeze | None = None) -> Floats:
    """log2 q(z) / pi(z) of q = N(mean, diag scale^2), squeezed or not, against the prior pi = N(0, I), in bits.

    z: (..., d), whitened coordinates, drawn in any dtype, computed in float64; mean, scale: (d,) or scalars.
    """
    z_ = np.asarray(z, np.float64)
    mean_ = np.broadcast_to(np.asarray(mean, np.float64), z_.shape[-1:])
    scale_ = np.broadcast_to(np.asarray(scale, np.float64), z_.shape[-1:])
    _need_positive(scale_)
    noise, volume = (z_ - mean_) / scale_, np.log(scale_).sum()
    if squeeze is not None:
        noise, volume = squeeze.unsqueezed(noise), volume + np.log(squeeze.factors).sum()
    # einsum keeps the sums of squares free of (..., d) temporaries
    square = np.einsum("...i,...i->...", z_, z_) - np.einsum("...i,...i->...", noise, noise)
    ratio: Floats = (square / 2.0 - volume) * BITS_PER_NAT
    return ratio


def _need_positive(scale: Floats) -> None:
    if not np.all(scale > 0.0):
        raise ValueError("a standard deviation must be positive")


def _need_share(hits: float, draws: int, confidence: float) -> None:
    if not (draws >= 1 and 0 <= hits <= draws):
        raise ValueError(f"need 0 <= hits <= draws and draws >= 1, not {hits} of {draws}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"a confidence lies between 0 and 1, not {confidence}")


def clopper_pearson_lower(hits: int, draws: int, confidence: float = CONFIDENCE) -> float:
    """One-sided lower limit of a binomial share: exceeds the truth with probability at most 1 - confidence."""
    _need_share(hits, draws, confidence)
    return float(special.betaincinv(hits, draws - hits + 1, 1.0 - confidence)) if hits > 0 else 0.0


def clopper_pearson_upper(hits: int, draws: int, confidence: float = CONFIDENCE) -> float:
    """One-sided upper limit of a binomial share: below the truth with probability at most 1 - confidence."""
    _need_share(hits, draws, confidence)
    return float(special.betaincinv(hits + 1, draws - hits, confidence)) if hits < draws else 1.0


def wilson_interval(hits: float, draws: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Two-sided interval of a share, for display; hits may be fractional (a mean of shares times items)."""
    _need_share(hits, draws, confidence)
    z = float(special.ndtri((1.0 + confidence) / 2.0))
    share, slack = hits / draws, z * z / draws
    centre = (share + slack / 2.0) / (1.0 + slack)
    half = math.sqrt(share * (1.0 - share) * slack + slack * slack / 4.0) / (1.0 + slack)
    return (0.0 if hits == 0 else max(centre - half, 0.0), 1.0 if hits == draws else min(centre + half, 1.0))


def student_quantile(level: float, degrees: float) -> float:
    """The `level` quantile of Student's t; infinite degrees give the normal quantile."""
    return float(special.ndtri(level) if math.isinf(degrees) else special.stdtrit(degrees, level))


def student_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """(mean, low, high) of independent replicates, Student t with n - 1 degrees of freedom; one value: infinite ends.

    For claims about the procedure, over seeds; the interval of a bound comes from its draws and never from here.
    """
    sample = np.asarray(values, np.float64).ravel()
    if sample.size == 0:
        raise ValueError("no values")
    mean = float(sample.mean())
    if sample.size == 1:
        return mean, -math.inf, math.inf
    half = student_quantile((1.0 + confidence) / 2.0, sample.size - 1) * float(sample.std(ddof=1)) / sample.size**0.5
    return mean, mean - half, mean + half


def size_weights(sizes: Sequence[int]) -> dict[int, float]:
    """Prior weight of each size of a run, summing to 1: 1 / (j (j + 1)) for the j-th doubling, j = 1 + ceil(log2 K)."""
    if not sizes or min(sizes) < 1 or len(set(sizes)) != len(sizes):
        raise ValueError(f"sizes are distinct and at least 1, not {list(sizes)}")
    doubling = {size: 1 + (size - 1).bit_length() for size in sizes}
    raw = {size: 1.0 / (j * (j + 1)) for size, j in doubling.items()}
    total = math.fsum(raw.values())
    return {size: weight / total for size, weight in raw.items()}


def family_weights(families: Sequence[str]) -> dict[str, float]:
    """Prior weight of each family: 1/2 for "null", so a default behaviour costs 1 bit; the others share the rest."""
    others = [family for family in families if family != "null"]
    weights = {family: 0.5 / len(others) for family in others}
    return {"null": 0.5, **weights}


def at_most(bits: float) -> str:
    """An upper bound in words: rounded up, to whole bits from 100 on and to tenths below."""
    return _rounded(bits, math.ceil, -1e-9)


def at_least(bits: float) -> str:
    """A lower bound in words: rounded down."""
    return _rounded(bits, math.floor, 1e-9)


def _rounded(bits: float, towards: Callable[[float], int], fuzz: float) -> str:
    if not math.isfinite(bits):
        return str(bits)
    scale, digits = (1, 0) if abs(bits) >= 100.0 else (10, 1)
    return f"{towards(bits * scale + fuzz) / scale:.{digits}f}"


def luck_ceiling(
    num_items: int,
    tau: float,
    item_rate: float,
    rate_interval: tuple[float, float] | None = None,
    confidence: float = CONFIDENCE,
    prior: str = "",
) -> Bits:
    """The distance that luck alone allows: n d2(k / n, a) + log2(n + 1), k = ceil(tau n) items of n at rate a.

    An estimate and no bound: it takes the items for independent at one rate. `rate_interval` gives its interval;
    without one the ends are NaN. The threshold is taken as met by k whole items, for d2(tau, a) itself is too small
    where tau n is no integer.
    """
    if num_items < 1:
        raise ValueError("need at least one item")
    # rounding first: 0.7 * 10 is 7.000000000000001 in floating point and still means 7 items
    share = math.ceil(round(tau * num_items, 9)) / num_items

    def luck_bits(rate: float) -> float:
        return num_items * d2(share, rate) if rate < share else 0.0

    choice = math.log2(num_items + 1)
    luck = luck_bits(item_rate)
    low, high = math.nan, math.nan
    if rate_interval is not None:
        low, high = luck_bits(rate_interval[1]) + choice, luck_bits(rate_interval[0]) + choice
    return Bits(
        luck + choice, "estimate", low, high, confidence, "luck", prior, (("items", luck), ("log2(n + 1)", choice))
    )
