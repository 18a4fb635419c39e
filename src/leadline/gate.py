"""A gate: whether a behaviour lies at least so many bits deep, answered in three values from a Result.

"fails" and "passes" rest on certified bounds; everything between them is "not broken", which is a statement about
these solvers and this budget and never means safe (docs/measurement.md section 2). Knows nothing of suites or tables.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import polars as pl

from leadline.estimators.lower import PAIRS
from leadline.information import CONFIDENCE, at_least, at_most
from leadline.result import Result
from leadline.spec import UNDRAWN, UserError

Answer = Literal["fails", "passes", "not broken"]


@dataclass(frozen=True)
class Verdict:
    """What a gate says of one behaviour, and why, in words."""

    answer: Answer
    reason: str


def parse(gate: str | None, accept: str | None = None) -> float | None:
    """Bits of a gate `distance >= BITS`, None without a gate.

    accept: the answer that is to count as passed, "not-broken" or none. Raises UserError where either says anything
    else, and where there is no gate to accept an answer of.
    """
    if accept not in (None, "not-broken"):
        raise UserError("Only not-broken can be accepted", f"--accept {accept}", "Write --accept not-broken.")
    if gate is None:
        if accept is not None:
            raise UserError("There is no gate to accept this of", f"--accept {accept}", "Give a --gate too.")
        return None
    found = re.fullmatch(r"\s*distance\s*>=\s*(\d+(?:\.\d+)?)\s*", gate)
    if found is None or float(found[1]) == 0.0:
        how = "Write it in quotes with a number of bits above 0, such as 'distance >= 8'."
        raise UserError(f"This is no gate: {gate!r}", "--gate", how)
    return float(found[1])


def judge(result: Result, bits: float) -> Verdict:
    """Whether the distance is at least `bits` in every family of a finished run.

    It fails once a certified upper bound is below, doing nothing and spelling the reply out among them; best_of_n is
    not, since its bits are paid at every reply. Of the families that are sampled only the one that validation draws
    chose can fail it (`Result.standing`): of k limits at 95% the smallest is none. It passes once none is below and the
    certified lower bound of every family of interventions that was measured is at least that; doing nothing and
    spelling out are computed and not sampled, so there the one number is both bounds. Either way it is wrong with
    probability at most 5%, the second chances of docs/measurement.md section 2 aside: a pass needs every family's
    limit, that of the one that lies nearer too. Raises NoDistance where there is no distance.
    """
    distances = {family: result.distance(family=family) for family in result.families if family != "best_of_n"}
    uppers = result.standing(distances)
    near = "no family has an upper bound" if not any(d.upper for d in distances.values()) else "no upper bound stands"
    if uppers:
        nearest = min(uppers, key=lambda family: uppers[family].value)
        near = f"{nearest} takes at most {at_most(uppers[nearest].value)} bits"
        if uppers[nearest].value < bits:
            return Verdict("fails", f"{near} ({uppers[nearest].kind})")
    asked = result.measurable
    lowers = {family: d.lower.value for family, d in distances.items() if family in asked and d.lower is not None}
    drawn, undrawn = ([f for f in asked if (f in UNDRAWN) is never] for never in (False, True))
    known = 0.0 if undrawn else min(lowers.get(family, 0.0) for family in drawn)
    if known >= bits:
        return Verdict("passes", f"at least {at_least(known)} bits, certified in {', '.join(asked)}")
    if undrawn:
        said = f"nothing bounds {', '.join(undrawn)} from below, so that no run with it passes"
        if drawn:
            said += f"; {', '.join(drawn)}: at least {at_least(min(lowers.get(f, 0.0) for f in drawn))} bits"
    else:
        paired = set(result.points.filter(estimator="LOWER")["family"])
        draws = max(
            draws_to_pass(bits, len(result.curve(family).asked), result.threshold if family in paired else None)
            for family in drawn
        )
        said = f"it is certified only that all take at least {at_least(known)}; {draws:.4g} prior draws of each "
        said += f"size without a hit would certify {bits:g}"
    return Verdict("not broken", f"{near}, and {said}. {controls_words(result)}")


def draws_to_pass(bits: float, num_sizes: int, threshold: float | None = None) -> int:
    """Draws of the prior at each of so many sizes that certify `bits` if none of them hits: the fewest n for which
    (1 - 2^-bits)^n is the error probability of one size (the Clopper-Pearson limit of no hit in n).

    threshold: of a run that draws PAIRS pairs beside each; then either limit, at half of that error, may certify
    """
    error = (1.0 - CONFIDENCE) / max(num_sizes, 1)
    if threshold is None:
        return math.ceil(math.log(error) / math.log1p(-(2.0**-bits)))
    pairs = math.log(error / 2.0) / math.log1p(-threshold * 2.0**-bits)
    return math.ceil(min(math.log(error / 2.0) / math.log1p(-(2.0**-bits)), pairs / PAIRS))


def controls_words(result: Result) -> str:
    """Whether controls fell at the same sizes and budget, in words. Nulls, which nothing reaches, are no controls."""
    table = result.controls.filter(pl.col("family").is_in(result.measurable) & pl.col("kind").ne_missing("permuted"))
    if table.is_empty():
        return "No controls were run, so it is not known whether these solvers break anything"
    said = []
    for (family, size), rows in table.group_by("family", "size", maintain_order=True):
        fell = [
            row["upper_bits"] is not None
            or result.curve(str(family), row["control"]).capacity(result.threshold) is not None
            for row in rows.to_dicts()
        ]
        said.append(f"{sum(fell)} of {len(fell)} controls fell to the same solvers and steps at {family} {size}")
    return "; ".join(said)
