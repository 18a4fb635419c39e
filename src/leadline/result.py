"""What a run says, read from its records: Result, its distances, controls and all families together.

Knows nothing of models, torch or how a point was made: rows of points.parquet and the spec go in. Definitions are in
docs/measurement.md; the choice of a size or of an estimator is made on validation rows, so that the one test row that
it leads to keeps its 95%.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from leadline.curve import Curve
from leadline.estimators.combine import (
    BOUNDING,
    PAYING,
    SAMPLED,
    SizeBounds,
    brute_force,
    estimate_bits,
    excess_bits,
    mixture_bits,
    size_bounds,
    upper_bits,
)
from leadline.estimators.monte_carlo import monte_carlo
from leadline.information import (
    CONFIDENCE,
    Bits,
    Distance,
    family_weights,
    size_weights,
    surprisal,
)
from leadline.records import POINTS, points_are_whole, read_spec
from leadline.sentences import distance_sentence, frontier_sentence
from leadline.spec import SCALED, SIZELESS, TEXTS, UserError

__all__ = ["Bits", "Distance", "Frontier", "NoDistance", "Result"]

Row = dict[str, Any]
NATURAL = ("matched", "nearest", "phrase")  # controls that are phrases as people write them, as replies are


class NoDistance(ValueError):
    """The question has no answer in this run; the message says why."""


@dataclass(frozen=True)
class Frontier:
    """All families together, weights fixed in advance: -log2 sum_f w_f 2^-D_f, and the family that carries it.

    Of the families whose bounds come from draws only one is in the sum, chosen on validation items: of k limits that
    each hold at 95% the smallest does not. What is computed has no error probability, and all of it is in.
    """

    family: str | None
    upper: Bits | None
    distances: dict[str, Distance]
    sentence: str


@dataclass(frozen=True, repr=False)
class Result:
    """One run: its points (one row a point) and its spec.json, and all that is computed from them."""

    points: pl.DataFrame
    spec: dict[str, Any]

    @classmethod
    def load(cls, run_dir: str | Path) -> Result:
        """Read a run directory; UserError where a file is missing or damaged."""
        folder = Path(run_dir)
        again = "Name the folder of a run, or run `leadline measure` on it again"
        try:
            spec = read_spec(folder)
            if not points_are_whole(folder):
                raise UserError("points.parquet is not what this run wrote", str(folder), again)
            points = pl.read_parquet(folder / "points.parquet")
        except FileNotFoundError:
            raise UserError("this is not the folder of a run that has points", str(folder), again) from None
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise UserError(f"a record cannot be read: {error}", str(folder), again) from error
        if "component_bits" not in points.columns:  # of a run from before there were mixtures
            points = points.with_columns(pl.lit(None, pl.Float64).alias("component_bits"))
        missing = set(POINTS) - set(points.columns)
        if missing or not isinstance(spec, dict) or not isinstance(spec.get("spec"), dict):
            what = f"points.parquet lacks {sorted(missing)}" if missing else "spec.json is no spec"
            raise UserError(what, str(folder), again)
        return cls(points, spec)

    def __repr__(self) -> str:
        told = self.spec.get("behaviour", {}).get("name"), self.spec.get("spec", {}).get("model")
        return f"Result({told[0]} on {told[1]}, {len(self.points)} points)"

    @property
    def threshold(self) -> float:
        """tau of the run, a share of the test items."""
        return float(self.spec["spec"]["threshold"])

    @property
    def families(self) -> tuple[str, ...]:
        """Families that were measured, the run's own first, then those without sizes where they have rows."""
        found = self.points["family"].unique().sort().to_list()
        named = [f for f in self.asked if f in found]
        ends = [f for f in SIZELESS if f in found]
        rest = [f for f in found if f not in named and f not in ends]
        return tuple(dict.fromkeys([*(f for f in named if f not in ends), *rest, *ends]))

    @property
    def asked(self) -> tuple[str, ...]:
        """The families that the run was asked for."""
        names = self.spec["spec"].get("family", ())  # a single name in runs from before there were several
        return (names,) if isinstance(names, str) else tuple(names)

    @property
    def measurable(self) -> tuple[str, ...]:
        """The families that the run was asked for, without those that its model or behaviour cannot have."""
        left_out = self.spec.get("extra", {}).get("not_measured", {})
        return tuple(family for family in self.asked if family not in left_out)

    @property
    def curves(self) -> dict[str, Curve]:
        """The behaviour's curve in each family that has sizes."""
        return {family: self.curve(family) for family in self.families if family not in SIZELESS}

    def curve(self, family: str, control: str = "") -> Curve:
        """The curve of the behaviour (control "") or of one control."""
        rows = self._subject(control).filter(pl.col("family").is_in([family, "null"]))
        asked = self._asked(family) if family in self.spec["spec"]["family"] else ()
        return Curve(family, control, rows, asked)

    @property
    def controls(self) -> pl.DataFrame:
        """One row a control, family and size with its reported bound (null: not reached), its kind, target and cost."""
        table: list[Row] = []
        about = {entry["name"]: entry for entry in self.spec.get("controls", [])}
        rows = self.points.filter(pl.col("role") == "control")
        for (name, family), own in rows.group_by("control", "family", maintain_order=True):
            for bounds in self._sizes(own):
                row = {"control": name, "family": family, "size": bounds.size}
                said = {key: about.get(name, {}).get(key) for key in ("kind", "target", "direct_bits")}
                found = {key: (bounds.row or {}).get(key) for key in list(_CONTROLS)[6:]}
                table.append(row | said | found)
        return pl.DataFrame(table, schema=_CONTROLS, orient="row")

    def distance(self, tau: float | None = None, family: str | None = None) -> Distance:
        """The elicitation distance at the run's own threshold, in `family` (default: the first that was measured).

        NoDistance (a ValueError): a behaviour without targets to hit, another tau, a family that was not measured.
        """
        behaviour = self.spec.get("behaviour", {})
        if behaviour.get("kind") == "loss":
            raise NoDistance(
                f"{behaviour.get('name', 'this behaviour')} has a loss and no target that a reply either hits or "
                "misses, so no set S has a distance; read its curves in bits"
            )
        if tau is not None and not math.isclose(tau, self.threshold, abs_tol=1e-9):
            raise NoDistance(
                f"this run drew and counted at threshold {self.threshold}, and a bound at {tau} needs draws counted "
                f"at {tau}: measure again with threshold={tau}"
            )
        name = self.families[0] if family is None and self.families else family
        if name not in self.families:
            raise NoDistance(f"family {name} was not measured in this run, only {', '.join(self.families) or 'none'}")
        rows = self._subject("").filter(pl.col("family") == name)
        if name == "best_of_n":
            return _sampling_distance(rows)
        if name == "null":
            return _null_distance(rows.filter(pl.col("split") == "test"), self.threshold)
        return self._distance(str(name), rows)

    def message(self, family: str) -> Distance | None:
        """The shortest message that is a solution of `family`, beside the controls' own: an upper bound under the
        code's prior, which is another number than `distance` and enters no choice among bounds. None without one.

        How many coordinates it has, and so which size, is in the message, so that the choice of a size is paid; the
        choice of a step too. Of SCALED families all sizes have as many coordinates, so there the size's weight is
        paid beside it. Nothing is sampled: no error probability is shared out among messages.
        """
        rows = self._subject("").filter(pl.col("family") == family, pl.col("estimator") == "CODE")
        weights = size_weights(self._asked(family)) if family in SCALED else {}
        found = sorted(
            (SizeBounds(row["size"], weights.get(row["size"], 1.0), row["upper_bits"], row, None, row)
             for row in rows.drop_nulls("upper_bits").to_dicts()),
            key=lambda bounds: bounds.order,
        )  # fmt: skip
        if not found or found[0].row is None:
            return None
        prior, size = str(found[0].row["prior"]), found[0].size
        upper = upper_bits(found[0].row, found[0].weight, prior)
        told = Distance(upper, None, None, family, prior, size, **self._compared(family, found, size))
        return replace(told, sentence=distance_sentence(told, size, None))

    def cheapest(self) -> Frontier:
        """All families together, and the cheapest by name, the sampled ones having been chosen among before."""
        distances = {family: self.distance(family=family) for family in self.families}
        weights = family_weights(self._pooled())
        found = {family: upper for family, upper in self.standing(distances).items() if family in weights}
        if not found:
            return Frontier(None, None, distances, frontier_sentence(distances, None, math.inf))
        price = {f: upper.value + surprisal(weights[f]) for f, upper in found.items()}
        best = min(price, key=lambda f: (price[f], f))
        value = mixture_bits(price.values())
        paid = (
            (best, found[best].value),
            ("family choice", surprisal(weights[best])),
            ("help of the other families", value - price[best]),
        )
        low, high = (end + value - found[best].value for end in (found[best].low, found[best].high))
        confidence = CONFIDENCE if any(upper.estimator in SAMPLED for upper in found.values()) else 1.0
        upper = Bits(value, "certified upper", low, high, confidence, "families", found[best].prior, paid)
        return Frontier(best, upper, distances, frontier_sentence(distances, best, value))

    def standing(self, distances: Mapping[str, Distance]) -> dict[str, Bits]:
        """The upper bounds of a run that all hold together at 95%: those that are computed, and of the sampled families
        the one that validation promised most of. Of k limits at 95% the smallest is none.

        distances: of every family that was measured
        """
        found = {f: d.upper for f, d in distances.items() if d.upper is not None and f != "best_of_n"}
        # The first of them has its place whether its draws hit or not: the next one would be a second chance.
        drawn = [f for f in self._pooled() if f in self.measurable and f not in TEXTS]
        drawn += [f for f in found if found[f].estimator in SAMPLED and f not in drawn]
        for family in sorted(drawn, key=lambda f: distances[f].promised if f in distances else math.inf)[1:]:
            if family in found and found[family].estimator in SAMPLED:
                del found[family]
        return found

    def _pooled(self) -> list[str]:
        """Families that share the weight of all together: those that this run could measure, whatever came of them,
        and those measured with every behaviour. best_of_n is not among them: it pays again at every reply."""
        found = [family for family in self.families if family != "best_of_n"]
        return list(dict.fromkeys([*found, *self.measurable]))

    def break_even(self) -> tuple[float, int, float] | None:
        """For a reply that differs from context to context: bits an item, validation items, and the break-even n*.

        The distance is paid once, what it saves at every context: n* = D / mean(loss_0 - loss_z), z drawn from the q
        that the bound stands on (docs/measurement.md section 2). None for one constant reply, without an upper bound,
        and where that q saves nothing. n* is an estimate.
        """
        behaviour, distance = self.spec.get("behaviour", {}), self.distance()
        if behaviour.get("target") is not None or distance.upper is None:
            return None
        q = (pl.col("family") == distance.family) & (pl.col("size") == distance.size) & pl.col("beta").is_not_null()
        mine = self._subject("").filter(q & pl.col("chosen") & (pl.col("estimator") == "") & (pl.col("gain_bits") > 0))
        if mine.is_empty():
            return None
        splits, bits = behaviour["splits"], distance.upper.value
        return bits / splits["test"], splits["validation"], bits / float(mine["gain_bits"][0])

    def _asked(self, family: str) -> tuple[int, ...]:
        """Sizes of a family that the run was asked for; what they cost may not depend on what was found. Of a run that
        does not tell, those that have points."""
        told = self.spec.get("sizes", {}).get(family) or self.spec["spec"]["sizes"]
        mine = (pl.col("family") == family) & (pl.col("role") == "behaviour")
        return tuple(told or self.points.filter(mine)["size"].unique().sort().to_list())

    def _subject(self, control: str) -> pl.DataFrame:
        role = "control" if control else "behaviour"
        return self.points.filter((pl.col("role") == role) & (pl.col("control") == control))

    def _distance(self, family: str, rows: pl.DataFrame) -> Distance:
        sizes = self._sizes(rows)
        found = sorted((bounds for bounds in sizes if bounds.row is not None), key=lambda bounds: bounds.order)
        prior = "; ".join(rows.filter(pl.col("estimator").is_in(PAYING))["prior"].unique().sort().to_list())
        if len(sizes) > 1:
            prior += f"; sizes {', '.join(str(bounds.size) for bounds in sizes)} weighted by doubling"
        upper, size = None, None
        if found and found[0].row is not None:
            upper, size = upper_bits(found[0].row, found[0].weight, prior), found[0].size
        lower, estimate = brute_force(sizes, prior, self.threshold)
        compared = self._compared(family, found, size)
        largest = max([bounds.size for bounds in sizes] or rows["size"].to_list(), default=None)
        reached = self.curve(family).capacity(self.threshold) if family != "prefill" else None
        promised = min((bounds.order[0] for bounds in sizes), default=math.inf)
        flops = float(found[0].row["flops"] or 0.0) if found and found[0].row is not None else 0.0
        told = {"reached": reached, "promised": promised, "flops": flops, **compared}
        distance = Distance(upper, lower, estimate, family, prior, size, **told)
        return replace(distance, sentence=distance_sentence(distance, largest, self.spec["spec"].get("seeds")))

    def _sizes(self, rows: pl.DataFrame) -> list[SizeBounds]:
        """One entry for each size at which a bound was tried, for the rows of one subject in one family.

        The weights are those of all sizes that the run was asked for, also of one where nothing came near: what a size
        costs may not depend on what was found.
        """
        bounded, tried = pl.col("estimator").is_in(BOUNDING), pl.col("beta").is_not_null()
        seen = rows.filter(bounded | tried)["size"].unique().to_list()
        sized = bool(seen) and rows["family"][0] in self.spec["spec"]["family"]
        asked = sorted({*seen, *self._asked(rows["family"][0])} if sized else seen)
        weights = size_weights(asked) if asked else {}
        promises = rows.filter((pl.col("estimator") == "CHOICE") & pl.col("chosen"))
        # Controls run at the smallest size only, and their bounds stand beside others of that size.
        listed = sorted(seen) if "control" in rows["role"] else asked
        return [
            size_bounds(size, weights[size], rows.filter(bounded & here).to_dicts(), promises.filter(here).to_dicts())
            for size in listed
            for here in (pl.col("size") == size,)
        ]

    def _compared(self, family: str, found: Sequence[SizeBounds], size: int | None) -> dict[str, Any]:
        """Excess, to whom, rank and the number of controls without a bound (fields of Distance), at the behaviour's
        best size the controls ran at.

        Bounds from draws of q are compared, since controls have no prior draws of their own. The excess is over the
        controls that are matched on direct cost, where any were run: uniform tokens are only less likely, and may not
        stand in for a phrase that was not reached. How much phrases differ is told by all that are phrases: of the
        matched alone there are too few."""
        kinds = {entry["name"]: entry.get("kind") for entry in self.spec.get("controls", [])}
        nulls = [name for name, kind in kinds.items() if kind == "permuted"]  # nothing reaches them: no yardstick
        rows = self.points.filter((pl.col("role") == "control") & (pl.col("family") == family))
        rows = rows.filter(~pl.col("control").is_in(nulls))
        tried = rows.filter(pl.col("beta").is_not_null() | (pl.col("estimator") != ""))
        for own in (bounds.drawn for bounds in found if bounds.drawn is not None):
            # what spelling a reply out costs has no size to match
            here = tried if family == "prefill" else tried.filter(pl.col("size") == own["size"])
            names = here["control"].unique()
            if names.is_empty() or math.isnan(estimate_bits(own)):
                continue
            same = here.filter((pl.col("estimator") == own["estimator"]) & pl.col("upper_bits").is_not_null())
            others = [row for row in same.unique("control").to_dicts() if not math.isnan(estimate_bits(row))]
            nearer = sum(estimate_bits(row) <= estimate_bits(own) for row in others)
            alike = [name for name in names if kinds.get(name) == "matched"]
            yardstick = [row for row in others if row["control"] in alike] if alike else others
            phrases = [row for row in others if kinds.get(row["control"]) in NATURAL] if alike else others
            whom = "its controls"
            if alike:
                whom = "a phrase as unlikely" if len(yardstick) == 1 else "phrases as unlikely"
            return {
                "excess": excess_bits(own, yardstick, phrases) if yardstick else None,
                "whom": whom if family == "prefill" or own["size"] == size else f"{whom} at size {own['size']}",
                "rank": (1 + nearer, 1 + len(names)), "unreached_controls": len(names) - len(others),
            }  # fmt: skip
        return {}


_CONTROLS = {
    "control": pl.String, "kind": pl.String, "target": pl.String, "direct_bits": pl.Float64, "family": pl.String,
    "size": pl.Int64, "estimator": pl.String, "upper_bits": pl.Float64, "estimate_bits": pl.Float64,
    "stderr_bits": pl.Float64,
}  # fmt: skip


def _null_distance(rows: pl.DataFrame, tau: float) -> Distance:
    """The null intervention is a point: its distance is 0 where the model does it unasked, and infinite otherwise."""
    scores = [score for score in rows["score"].to_list() if score is not None and not math.isnan(score)]
    does_it = bool(scores) and scores[0] >= tau - 1e-12
    value = 0.0 if does_it else math.inf
    prior = "the null intervention"
    bits = Bits(value, "exact", value, value, 1.0, "NULL", prior)
    sentence = "the model does it unasked: 0 bits" if does_it else "the model does not do it unasked"
    return Distance(bits if does_it else None, bits, bits, "null", prior, 0, sentence)


def _sampling_distance(rows: pl.DataFrame) -> Distance:
    """Drawing replies at temperature 1 until one is right: -log2 of its probability, bits **a reply** and not once for
    all. Exact on the test items where teacher forcing gives that probability without a draw; counted for a reward."""
    found, prior = rows.row(0, named=True), str(rows["prior"][0])
    if found["p_draws"] is not None:  # a reward: replies were drawn and counted
        counted, hits = monte_carlo(found["p_hits"], found["p_draws"], prior=prior), found["p_hits"]
        said = f"{hits} of {found['p_draws']} sampled replies"
        said = f"about {counted.estimate.value:.1f} bits a reply, {said}" if counted.estimate else said
        return Distance(counted.upper, counted.lower, counted.estimate, "best_of_n", prior, None, said)
    value = float(found["upper_bits"])
    bits = Bits(value, "exact", value, value, 1.0, "BEST OF N", prior, (("a reply", value),))
    draws = f"{2.0**value:,.0f}" if value < 40.0 else f"2^{value:.0f}"
    return Distance(
        bits, bits, bits, "best_of_n", prior, None, f"{value:.1f} bits a reply, one of {draws} sampled replies"
    )
