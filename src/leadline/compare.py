"""Finished runs side by side: what a run says minus what the first one says, from their records alone.

Loss and score are compared item by item where both runs hold the same test items and kept what each item came to;
where they did not keep it, and where the items differ, the intervals of the two means are combined instead, and the
difference says how. Distances are subtracted by the same bound at the same size, as everywhere (docs/measurement.md
section 5). Knows nothing of models, torch or how a table looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from leadline.estimators.combine import BOUNDING, TWO_SIDED, SizeBounds, estimate_bits, excess_bits, size_bounds
from leadline.information import Bits, Floats, student_interval, student_quantile
from leadline.records import digest, read_record
from leadline.result import Result
from leadline.spec import TEXTS, UserError

Row = dict[str, Any]
Pairing = Literal["paired", "added", "independent"]


@dataclass(frozen=True)
class Difference:
    """A mean over test items of one run minus that of the first, with its 95% interval.

    pairing: "paired": Student's interval of the mean of differences, item by item;
             "added": the runs share items, and what each came to is not on record, or the targets or some items differ.
             Half-widths are added, which covers whatever the correlation between the runs is;
             "independent": no item in common; the root of the sum of squares of half-widths
    """

    value: float
    low: float
    high: float
    pairing: Pairing


@dataclass(frozen=True)
class Side:
    """One finished run of a comparison.

    items: prompt and target of each test item of the behaviour, in order
    """

    folder: Path
    result: Result
    items: tuple[tuple[str, str], ...]

    @cached_property
    def bounds(self) -> dict[tuple[str, int], SizeBounds]:
        """What is reported of the behaviour by family and size (prefill, which has none, under 0); the choice of a size
        is not paid."""
        rows = self.result.points.filter((pl.col("role") == "behaviour") & (pl.col("family") != "null"))
        tested = rows.filter(pl.col("estimator").is_in(BOUNDING))
        promised = rows.filter((pl.col("estimator") == "CHOICE") & pl.col("chosen"))
        found = {}
        for family, size in tested.select("family", "size").unique(maintain_order=True).sort("size").iter_rows():
            here = (pl.col("family") == family) & (pl.col("size") == size)
            one = size_bounds(size, 1.0, tested.filter(here).to_dicts(), promised.filter(here).to_dicts())
            found[family, 0 if family == "prefill" else size] = one
        return found

    def held_out(self, family: str, size: int) -> Row | None:
        """The row of one size on test items; size 0 is the untouched model. None where that size was not run."""
        rows = self.result.curve(family).size_curve().filter(pl.col("size") == size).to_dicts()
        return rows[0] if rows else None

    def record(self, family: str, size: int) -> Row | None:
        """The record that the row of `held_out` was stored with: its own at size 0, else that of the test items of the
        trained cell that the row is named for."""
        row = self.held_out(family, size)
        if row is None:
            return None
        found = [self.result.spec["hash"], "test", row["key"]]
        if family in TEXTS:  # whose test items are scored once a size, for all its restarts
            found[1:] = ["text test", f"behaviour {family} {size}"]
        key = digest(found) if size else row["key"]
        return read_record(self.folder, f"cells/{key}/record.json")


def load_sides(folders: Sequence[Path]) -> list[Side]:
    """The runs of a comparison. Raises UserError where there are fewer than two, or one cannot be compared."""
    if len(folders) < 2:
        raise UserError("One run alone cannot be compared", "leadline compare", "Name two run directories or more.")
    return [load(folder) for folder in folders]


def load(folder: Path) -> Side:
    """One run of a comparison. Raises UserError where it is damaged or not finished."""
    result = Result.load(folder)
    if not result.spec.get("finished"):
        how = "The same `leadline measure` continues it; compare it when it is done."
        raise UserError("This run is not finished, and its numbers may still change", str(folder), how)
    tasks = read_record(folder, "items.json")["tasks"]
    return Side(folder, result, tuple((item["prompt"], item["target"]) for item in tasks[0]["items"]["test"]))


def incomparable(first: Side, other: Side) -> str:
    """Why the distances of two runs are not subtracted, in words; "" where they are.

    Bits of models of another width are not those of one measure.
    """
    if first.result.threshold != other.result.threshold:
        return f"counted at thresholds {first.result.threshold:g} and {other.result.threshold:g}"
    widths = {side.result.spec.get("provenance", {}).get("hidden_size") for side in (first, other)}
    return "models of another width: raw distances are not comparable, Delta is" if len(widths) > 1 else ""


def bound_difference(first: Side, other: Side, family: str, size: int) -> Bits | None:
    """Distance of `other` minus that of `first`: point estimates of the same bound at the same size and under the same
    prior. None where there is no such pair.

    Squares of standard errors add where the draws are independent. Noise depends on the label of a cell alone, so two
    runs that chose the same seed and beta drew the same noise: there standard errors add, whatever their correlation.
    """
    mine, theirs = (_drawn(side, family, size) for side in (first, other))
    if incomparable(first, other) or mine is None or theirs is None:
        return None
    found = excess_bits(mine, [theirs])
    if any(mine[name] != theirs[name] for name in ("estimator", "prior")) or not math.isfinite(found.high - found.low):
        return None
    half = (found.high - found.low) / 2.0
    if mine["beta"] is not None and all(mine[name] == theirs[name] for name in ("seed", "beta")) and half > 0.0:
        errors = [float(row["stderr_bits"]) for row in (mine, theirs)]
        half *= math.fsum(errors) / math.hypot(*errors)
    paid = (("this run", estimate_bits(theirs)), ("the first run", -estimate_bits(mine)))
    return replace(found, low=found.value - half, high=found.value + half, ledger=paid)


def _drawn(side: Side, family: str, size: int) -> Mapping[str, Any] | None:
    found = side.bounds.get((family, size))
    return found.drawn if found is not None else None


def loss_difference(first: Side, other: Side, family: str, size: int) -> Difference | None:
    """Loss in bits a reply on test items, `other` minus `first`."""
    return _difference(first, other, family, size, "loss", lambda side: _kept(side, family, size, "costs"))


def saved_difference(first: Side, other: Side, family: str, size: int) -> Difference | None:
    """How many more bits a reply `other` saves over its own size 0 than `first` does, on test items."""

    def saved(side: Side) -> Floats | None:
        before, after = _kept(side, family, 0, "costs"), _kept(side, family, size, "costs")
        return None if before is None or after is None else before - after

    return _difference(first, other, family, size, "gain", saved)


def score_difference(first: Side, other: Side, family: str, size: int) -> Difference | None:
    """Score on test items, `other` minus `first`."""
    return _difference(first, other, family, size, "score", lambda side: _kept(side, family, size, "right"))


def _kept(side: Side, family: str, size: int, what: str) -> Floats | None:
    """(items,) what each test item came to, where the record of that size kept it: "costs" in bits, "right" 0 or 1."""
    kept = (side.record(family, size) or {}).get(what, {}).get("test")
    values = None if kept is None else np.asarray(kept, np.float64)
    return values if values is not None and len(values) == len(side.items) and np.isfinite(values).all() else None


def _difference(
    first: Side, other: Side, family: str, size: int, what: str, kept: Callable[[Side], Floats | None]
) -> Difference | None:
    """None where one of the two has no mean with an interval."""
    if first.items == other.items and len(first.items) > 1:
        one, two = kept(first), kept(other)
        # Scores that agree on every item have no spread, which says nothing of other items: their own intervals do.
        if one is not None and two is not None and (what != "score" or (two - one).std() > 0.0):
            return Difference(*student_interval(two - one), "paired")
    means = [_mean(side, family, size, what) for side in (first, other)]
    if means[0] is None or means[1] is None:
        return None
    prompts = [{prompt for prompt, _ in side.items} for side in (first, other)]
    return unpaired(means[0], means[1], shared=bool(prompts[0] & prompts[1]), score=what == "score")


@dataclass(frozen=True)
class Mean:
    """A mean over `num_items` items with its 95% interval."""

    value: float
    low: float
    high: float
    num_items: int


def _mean(side: Side, family: str, size: int, what: str) -> Mean | None:
    row = side.held_out(family, size) or {}
    names = (f"{what}_bits" if what != "score" else what, f"{what}_low", f"{what}_high")
    value, low, high = (math.nan if row.get(name) is None else float(row[name]) for name in names)
    return Mean(value, low, high, len(side.items)) if np.isfinite([value, low, high]).all() else None


def unpaired(one: Mean, two: Mean, shared: bool, score: bool) -> Difference:
    """`two` minus `one`, from their intervals alone.

    A score's interval is not symmetric: its arms are combined on either side (Newcombe, Statistics in Medicine 17,
    1998, method 10). Student's intervals of two runs have Welch's degrees of freedom. shared: whether the runs
    share items, so that arms are added and not their squares.
    """
    value = two.value - one.value
    if score:
        arms = [two.value - two.low, one.high - one.value], [two.high - two.value, one.value - one.low]
        down, up = (_combined(pair, shared) for pair in arms)
    else:
        degrees = [mean.num_items - 1 for mean in (one, two)]
        spans = [mean.high - mean.low for mean in (one, two)]
        errors = [s / 2.0 / student_quantile(TWO_SIDED, d) for s, d in zip(spans, degrees, strict=True)]
        freedom = float(min(degrees)) if shared else _welch(errors, degrees)
        down = up = _combined(errors, shared) * student_quantile(TWO_SIDED, freedom)
    return Difference(value, value - down, value + up, "added" if shared else "independent")


def _combined(parts: Sequence[float], shared: bool) -> float:
    """Standard errors, or multiples of them, of a difference: at most their sum, and of independent ones the root of
    the sum of squares."""
    return math.fsum(parts) if shared else math.hypot(*parts)


def _welch(errors: Sequence[float], degrees: Sequence[int]) -> float:
    """Degrees of freedom of a difference of independent means with these standard errors (Welch and Satterthwaite)."""
    shares = math.fsum(error**4 / d for error, d in zip(errors, degrees, strict=True))
    return math.fsum(error**2 for error in errors) ** 2 / shares if shares > 0.0 else math.inf
