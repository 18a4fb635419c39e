"""From the bounds of several sizes, families' parts or subjects to one number, with every choice paid for.

Reads stored rows (of points.parquet, as dicts) and never draws: hits, draws, KL and limits are in them. Which size and
which estimator is reported is decided on validation rows, so the one test row that this leads to keeps its confidence;
the smallest of several 95% limits would not be a 95% limit. It does not know files, families or models.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leadline.estimators.cond import MEAN_PART, degrees_of_freedom, hit_confidence
from leadline.estimators.kl import kl
from leadline.estimators.markov import markov_ledger
from leadline.estimators.monte_carlo import monte_carlo
from leadline.information import (
    CONFIDENCE,
    Bits,
    clopper_pearson_lower,
    clopper_pearson_upper,
    student_quantile,
    surprisal,
)

SAMPLED = ("SPLIT", "COND", "KL", "MC")
"""Estimators whose bound comes from draws, in the order in which they are reported. SPLIT stands first: where its runs
were made they need no Gaussian to fit S. IW weighs the draws of COND, and stands beside it in the list of all bounds.

**Where the first says nothing.** SPLIT gives way to COND where one of its runs ended without mass, and a size whose
draws never hit gives way to the next: a second chance, which the draws of the second do not know of. What is reported
then fails with probability delta (1 + P_1 + P_1 P_2 + ...) at most, P_j the probability that the j-th said nothing, and
not delta. Splitting delta beforehand would charge every run for what few need.
"""
COMPUTED = {"PREFILL": "spelling it out", "TEXT": "texts that work", "CODE": "message, its size and step in it"}
"""Estimators that draw nothing, and what their bits were paid for."""
PAYING = ("SPLIT", "COND", "KL", "TEXT", "MC", "PREFILL")
"""All of them, in the order in which they are reported: what is computed comes before blind draws that hit. CODE is not
among them: its bits are counted under another prior than the family's, and the smaller of the two would be neither.
"""
COMPONENT = "the text it stands around"
"""What is paid for one component of a mixture."""
BOUNDING = (*PAYING, "LOWER")
"""Estimators whose rows `size_bounds` looks at."""
PROMISED_HITS = 32
"""MC is reported in place of COND where validation promises this many hits among the prior draws."""

SEARCHED = ("TEXT", "CODE")
"""Of these, those whose bits depend on what a search came upon: computed, and yet another search would find others."""
SPREAD_CONTROLS = 3
"""From so many controls on, their own spread is in the interval of the excess."""

TWO_SIDED = (1.0 + CONFIDENCE) / 2.0

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SizeBounds:
    """One size of a family: its prior weight, what was promised for it, what is reported, and its prior draws.

    promise: upper bound in bits that the validation draws of the chosen cell promise; inf without them
    row:     the reported row, None where no estimator found a bound
    brute:   the row of prior draws (MC), None where none were drawn
    drawn:   the row with a bound from draws of q, which controls have too; None where there is none
    pairs:   the row of prior draws on one item each (LOWER), None where none were drawn
    """

    size: int
    weight: float
    promise: float
    row: Row | None
    brute: Row | None
    drawn: Row | None
    pairs: Row | None = None

    @property
    def order(self) -> tuple[float, int]:
        """Sorts the sizes of a run from the most to the least promising."""
        return self.promise + surprisal(self.weight), self.size


def size_bounds(size: int, weight: float, tested: Iterable[Row], promised: Iterable[Row]) -> SizeBounds:
    """Choose what is reported of a size. tested: its rows with a bound; promised: rows of draws on validation items."""
    here = {str(row["estimator"]): row for row in tested}
    promise = min((row["estimate_bits"] for row in promised if row["estimate_bits"] is not None), default=math.inf)
    brute = here.get("MC")
    names: tuple[str, ...] = PAYING
    if brute is not None and brute["p_draws"] and promise <= math.log2(brute["p_draws"] / PROMISED_HITS):
        names = ("MC", *PAYING)
    bounded = [here[name] for name in names if name in here and here[name]["upper_bits"] is not None]
    drawn = next((row for row in bounded if row["estimator"] not in ("MC", "SPLIT")), None)
    return SizeBounds(size, weight, promise, bounded[0] if bounded else None, brute, drawn, here.get("LOWER"))


def estimate_bits(row: Row) -> float:
    """Point estimate of a row's bound, NaN where none is stored; a prefill's price is computed and not sampled."""
    value = row["estimate_bits"]
    if value is None:
        value = row["upper_bits"] if row["estimator"] in COMPUTED else math.nan
    return float(value)


def _stderr_bits(row: Row) -> float:
    value = row["stderr_bits"]
    if value is None:
        value = 0.0 if row["estimator"] in COMPUTED else math.nan
    return float(value)


def _degrees(row: Row) -> float:
    """Degrees of freedom of a stored standard error: COND's own, of SPLIT one less than its runs, else the normal's."""
    if row["estimator"] == "COND" and row["p_draws"]:
        return float(degrees_of_freedom(row["p_hits"], row["p_draws"]))
    runs = row["p_hits"] is not None  # else of a run from before these rows told of their runs
    return row["p_draws"] - 1.0 if row["estimator"] == "SPLIT" and runs else math.inf


def upper_bits(row: Row, weight: float, prior: str) -> Bits:
    """A stored upper bound with the size choice paid, -log2 weight; interval and ledger rebuilt from the record."""
    value, name, charge = float(row["upper_bits"]), str(row["estimator"]), surprisal(weight)
    hits, draws, kl_bits = row["p_hits"], row["p_draws"], row["kl_bits"]
    half = _stderr_bits(row) * student_quantile(TWO_SIDED, _degrees(row))
    low, high = estimate_bits(row) - half, estimate_bits(row) + half
    counted = {"MC": lambda: monte_carlo(hits, draws), "KL": lambda: kl(hits, draws, kl_bits)}
    if name in counted and (estimate := counted[name]().estimate) is not None:
        low, high = estimate.low, estimate.high
    if name in ("COND", "KL"):
        level, rest = (hit_confidence(kl_bits), MEAN_PART) if name == "COND" else (CONFIDENCE, "divergence")
        hit_part = surprisal(clopper_pearson_lower(hits, draws, level))
        # of KL the parts do not come apart: what misses cost grows with the text's price as with the rest
        component = (row.get("component_bits") or 0.0) if name == "COND" else 0.0
        paid = [("-log2 p", hit_part), (rest, value - hit_part - component)]
        if component:
            paid.append((COMPONENT, component))
    elif name == "SPLIT" and hits is not None:
        paid = markov_ledger(value, draws)
    else:
        paid = [(COMPUTED.get(name, "-log2 p"), value)]
    if charge > 0.0:
        paid.append(("size choice", charge))
    ends = (low + charge, high + charge)
    return Bits(value + charge, "certified upper", *ends, CONFIDENCE, name, prior, tuple(paid))


def brute_force(sizes: Sequence[SizeBounds], prior: str, threshold: float) -> tuple[Bits | None, Bits | None]:
    """Certified lower bound and two-sided estimate of D from the prior draws of all sizes: -log2 sum_K w_K pi_K(S).

    Each size's limit stands at 1 - delta / (number of sizes), so that all hold together at 1 - delta; a size without
    draws may have any mass up to 1. Where pairs of LOWER were drawn too, both limits stand at half of that delta and
    the smaller counts. The estimate is None where a size has no draws or none hit; it is that of the draws alone.
    """
    found = [s for s in sizes if s.brute is not None]
    if not found:
        return None, None
    counts = [(s.weight, int(s.brute["p_hits"]), int(s.brute["p_draws"])) for s in found if s.brute is not None]
    unknown = math.fsum(s.weight for s in sizes if s.brute is None)
    spread = (1.0 - CONFIDENCE) / len(sizes)

    def bits(mass: Iterable[float], rest: float) -> float:
        return surprisal(min(math.fsum(mass) + rest, 1.0))

    low = bits((w * clopper_pearson_upper(h, n, 1.0 - spread / 2.0) for w, h, n in counts), unknown)
    high = bits((w * clopper_pearson_lower(h, n, 1.0 - spread / 2.0) for w, h, n in counts), 0.0)
    value = bits((s.weight * _most_mass(s, spread, threshold) for s in found), unknown)
    words = "-log2 of the mass over sizes" if len(sizes) > 1 else "-log2 of the mass"
    name = "MC+LOWER" if any(s.pairs is not None for s in found) else "MC"
    lower = Bits(value, "certified lower", min(low, value), high, CONFIDENCE, name, prior, ((words, value),))
    share = bits((w * h / n for w, h, n in counts), 0.0)
    if unknown or math.isinf(share):
        return lower, None
    return lower, Bits(share, "exact", low, high, CONFIDENCE, "MC", prior, ((words, share),))


def _most_mass(size: SizeBounds, spread: float, threshold: float) -> float:
    """Upper limit of pi(S) at one size, which fails with probability `spread` at most."""
    assert size.brute is not None
    hits, draws = int(size.brute["p_hits"]), int(size.brute["p_draws"])
    if size.pairs is None:
        return clopper_pearson_upper(hits, draws, 1.0 - spread)
    right, pairs = int(size.pairs["p_hits"]), int(size.pairs["p_draws"])
    return min(
        clopper_pearson_upper(hits, draws, 1.0 - spread / 2.0),
        clopper_pearson_upper(right, pairs, 1.0 - spread / 2.0) / threshold,
    )


def excess_bits(own: Row, others: Sequence[Row], alike: Sequence[Row] = ()) -> Bits:
    """Delta = mean bound of the controls - bound of the behaviour, a difference of point estimates of one bound.

    alike: controls whose spread is that of the behaviour's kind, `others` among them; none: `others` alone

    With one or two of them the interval is over draws alone, so it speaks of these very controls: Student t with the
    fewest degrees of freedom that any of the estimates has; of a bound that a search found there is none, and the
    interval is everything. From three on it is the prediction interval of one more control, Student t with one less
    than their number: of controls put in the behaviour's place, 95% would hold 0. The controls' spread holds that of
    draws and of searches.
    """
    bits = [estimate_bits(row) for row in others]
    mean, mine, count = math.fsum(bits) / len(bits), estimate_bits(own), len(bits)
    kind = [estimate_bits(row) for row in alike or others]
    if len(kind) >= SPREAD_CONTROLS:
        degrees = float(len(kind) - 1)
        spread = statistics.stdev(kind) * math.sqrt(1.0 + 1.0 / count)
    elif own["estimator"] in SEARCHED:
        degrees, spread = math.inf, math.inf
    else:
        degrees = min(_degrees(row) for row in (own, *others))
        spread = math.hypot(_stderr_bits(own), math.hypot(*(_stderr_bits(row) for row in others)) / count)
    half = spread * student_quantile(TWO_SIDED, degrees)
    paid = (("mean of the controls", mean), ("the behaviour", -mine))
    name, value = f"{own['estimator']} difference", mean - mine
    return Bits(value, "estimate", value - half, value + half, CONFIDENCE, name, str(own["prior"]), paid)


def mixture_bits(prices: Iterable[float]) -> float:
    """-log2 sum_i 2^-x_i of prices in bits, each its own weight's surprisal included: what they cost together."""
    bits = sorted(prices)
    return bits[0] - math.log2(math.fsum(2.0 ** (bits[0] - x) for x in bits))
