"""What a report says first, in plain words, and the subjects it speaks of: the behaviour and its controls.

The table in the terminal and the page take both from here, so they cannot disagree. Knows nothing of how they look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from leadline.estimators.combine import excess_bits
from leadline.information import Bits, Distance, at_least, at_most
from leadline.report.words import NONE, UNITS, about, finite, interval, short, size_words, span
from leadline.result import NoDistance, Result
from leadline.sentences import difference_words
from leadline.spec import TEXTS

ENOUGH_ITEMS = 40  # docs/measurement.md section 1
ENOUGH_CONTROLS = 8  # two of each of the four kinds (docs/measurement.md section 5)


def behaviour_label(spec: Mapping[str, Any], limit: int = 60) -> str:
    """The behaviour in the reader's words: its target in quotes where all items share one, else its name."""
    behaviour = spec.get("behaviour", {})
    target = behaviour.get("target")
    return f"'{short(target, limit)}'" if target else short(behaviour.get("name", "the behaviour"), limit)


@dataclass(frozen=True)
class Subject:
    """The behaviour, or one control, and what was found of it in the run's first family.

    direct_bits: price of spelling the reply out (prefill), None where unknown
    upper:       certified limit found at `size`; the behaviour's has paid for its choice of size; None: not reached
    excess:      this control's distance minus the behaviour's, the same bound at the same size
    unbounded:   what stands in the limit's place where there is none
    """

    name: str
    kind: str
    target: str
    direct_bits: float | None
    size: int | None
    estimator: str
    upper: float | None
    lower: float | None
    excess: Bits | None = None
    unbounded: str = "not broken"

    @property
    def is_control(self) -> bool:
        return self.kind != "behaviour"


def distance_of(result: Result) -> tuple[Distance | None, str]:
    """The distance in the run's first family, or None and the reason why there is none."""
    try:
        return result.distance(), ""
    except NoDistance as reason:
        return None, f"{str(reason).rstrip('.')}."


def subjects(result: Result) -> tuple[Subject, ...]:
    """The behaviour, the behaviour at the controls' size where that is another one, and then the controls, a size after
    the other, nearest first and those not reached last."""
    distance, _ = distance_of(result)
    if distance is None:
        return ()
    spec, target = result.spec, result.spec.get("behaviour", {}).get("target") or ""
    upper, lower = distance.upper, distance.lower
    own = Subject(
        behaviour_label(spec), "behaviour", target, _direct(result, ""), distance.size,
        upper.estimator if upper else "",
        upper.value if upper else None, lower.value if lower else None, unbounded=distance.unbounded,
    )  # fmt: skip
    found, at = [], {}
    for row in result.controls.filter(pl.col("family") == distance.family).iter_rows(named=True):
        mine = _row(result, "", distance.family, row["size"], row["estimator"])
        theirs = _row(result, row["control"], distance.family, row["size"], row["estimator"])
        direct = row["direct_bits"] if row["direct_bits"] is not None else _direct(result, row["control"])
        found.append(
            Subject(
                row["control"], row["kind"] or "", row["target"] or "", direct, row["size"], row["estimator"] or "",
                row["upper_bits"], _lower(result, row["control"], distance.family, row["size"]),
                excess_bits(mine, [theirs]) if _counted(mine) and _counted(theirs) else None,
                "not broken" if result.curve(distance.family, row["control"]).capacity(result.threshold) is None
                else "no bound",
            )
        )  # fmt: skip
        if mine and row["size"] != distance.size and distance.family in UNITS:
            at[row["size"]] = replace(
                own, name=f"{own.name} at {size_words(distance.family, row['size'])}", size=row["size"],
                estimator=row["estimator"], upper=mine["upper_bits"],
                lower=_lower(result, "", distance.family, row["size"]),
            )  # fmt: skip
    return own, *at.values(), *sorted(found, key=lambda s: (s.size, s.upper is None, s.upper or 0.0, s.name))


def controls_of(result: Result) -> list[Subject]:
    """The controls among the subjects."""
    return [subject for subject in subjects(result) if subject.is_control]


@dataclass(frozen=True)
class Headline:
    """What the run says first. state: "bounded", "not bounded", "not broken", "under way" or "curves only".

    notes: what must be read with it.
    """

    sentence: str
    state: str
    notes: tuple[str, ...]


def headline(result: Result) -> Headline:
    """The run in plain words, built from its Distance alone; of a behaviour without one, from its size curve."""
    said = _headline(result)
    left_out: dict[str, str] = result.spec.get("extra", {}).get("not_measured", {})
    said = replace(said, notes=(*said.notes, *(f"{family}: not measured. {why}." for family, why in left_out.items())))
    if result.spec.get("finished"):
        return said
    return replace(said, notes=("This run is not finished: its numbers may still change.", *said.notes))


def _headline(result: Result) -> Headline:
    distance, reason = distance_of(result)
    label = behaviour_label(result.spec)
    if distance is None:
        return _curve_headline(result, label, reason)
    notes = _notes(result, distance)
    if distance.upper is None:
        return _unbounded(result, distance, label, notes)
    words = f"{label} sits behind at most {at_most(distance.upper.value)} bits of {distance.family.replace('_', ' ')}"
    words += f" and at least {at_least(distance.lower.value)}" if distance.lower else ""
    words += f"; {difference_words(distance)}" if distance.excess is not None else ""
    return Headline(f"{words}{_nearer(result, distance)}.", "bounded", tuple(notes))


def _nearer(result: Result, distance: Distance) -> str:
    """Of the other families that were asked for the nearest, where it is nearer than the one that is spoken of; of the
    sampled ones only what `Result.standing` lets stand."""
    distances = {family: result.distance(family=family) for family in result.families}
    found = {
        family: upper.value
        for family, upper in result.standing(distances).items()
        if family in result.measurable and family != distance.family
    }
    nearest = min(found, key=lambda family: found[family], default=None)
    if nearest is None or (distance.upper is not None and found[nearest] >= distance.upper.value):
        return ""
    return f"; {nearest.replace('_', ' ')} takes at most {at_most(found[nearest])} bits"


def _unbounded(result: Result, distance: Distance, label: str, notes: list[str]) -> Headline:
    """No upper bound: not reached at all, or reached by a prompt that no bound was computed for."""
    curve = result.curve(distance.family)
    known = ""
    if distance.lower is not None:
        known = f"; certified only that it lies at least {at_least(distance.lower.value)} bits deep there"
    reached = distance.reached
    if reached == 0:
        return Headline(f"{label} is what the model does unasked{known}.", "not bounded", tuple(notes))
    if reached is not None:
        words = (
            f"{label} is reached by {size_words(distance.family, reached)} on held-out items, without an upper bound"
        )
        return Headline(f"{words} in bits{known}{_nearer(result, distance)}.", "not bounded", tuple(notes))
    if not result.spec.get("finished"):
        return Headline(f"{label} has not been reached yet{known}.", "under way", tuple(notes))
    tries = size_words(distance.family, max(curve.sizes, default=None))
    seeds = result.spec["spec"].get("seeds")
    budget = [part for part in (tries, f"{seeds} seed{'' if seeds == 1 else 's'}" if seeds else "") if part]
    words = f"{label} was not reached by {distance.family.replace('_', ' ')}: not broken"
    words += f" by up to {' and '.join(budget)}" if budget else ""
    sizes: dict[int, list[bool]] = {}
    for subject in controls_of(result):
        fell = subject.upper is not None or subject.unbounded == "no bound"
        sizes.setdefault(subject.size or 0, []).append(fell)
    for size, fallen in sorted(sizes.items(), reverse=True):
        at = size_words(distance.family, size)
        notes.insert(0, f"{sum(fallen)} of {len(fallen)} controls fell to the same solvers and steps at {at}.")
    notes.insert(0, "Not broken is a statement about these solvers and this budget. It does not mean safe.")
    return Headline(f"{words}{known}{_nearer(result, distance)}.", "not broken", tuple(notes))


def confirmation(result: Result) -> tuple[float | None, int]:
    """The share of the reported bound's hits that pass a second split, and how many hits that is of."""
    distance, _ = distance_of(result)
    if distance is None:
        return None, 0
    counts = result.spec.get("extra", {}).get("confirmation", {}).get(f"/{distance.family}/{distance.size}")
    return (counts["hits"] / counts["draws"], counts["draws"]) if counts and counts["draws"] else (None, 0)


def _judging(result: Result) -> list[str]:
    """How far a reward's scorer agrees with labels that were given, and how often it gave no answer."""
    told = result.spec.get("extra", {}).get("reward") or {}
    notes = []
    if agreement := told.get("agreement"):
        kappa, low, high = (agreement[name] for name in ("kappa", "low", "high"))
        value = "not known" if kappa is None else f"{kappa:.2f}"
        ends = f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else ""
        notes.append(f"The scorer agrees with the labels that were given by a kappa of {value}{ends}.")
    if told.get("unscored"):
        notes.append(f"Of {told['draws']} sampled replies {told['unscored']} got no score; such a reply is no hit.")
    return notes


def _notes(result: Result, distance: Distance) -> list[str]:
    notes = _judging(result)
    items = result.spec.get("behaviour", {}).get("splits", {}).get("test", ENOUGH_ITEMS)
    if distance.upper is not None and items < ENOUGH_ITEMS:
        notes.append(f"Only {items} test items: a score of {result.threshold:g} on so few says little (--items 40).")
    if distance.estimate is not None and distance.estimate.low < distance.estimate.high:
        counted = distance.estimate
        said = f"Counted by brute force: {about(counted.value)} bits, {interval(counted)} (95%)."
        if distance.upper is not None and distance.upper.value > counted.high:
            said += f" The bound is {distance.upper.estimator}'s, which was chosen before either was seen."
        notes.append(said)
    curve = f"/{distance.family}/{distance.size}"
    if distance.upper is not None and result.spec.get("extra", {}).get("bracketed", {}).get(curve) is False:
        notes.append(
            "The threshold was not bracketed within 5%: no distribution was found that just reaches it. The upper "
            "bound stands on draws and holds all the same; a better search may lower it."
        )
    short = distance.reached is None or distance.reached > (distance.size or 0)
    if distance.upper is not None and distance.family in UNITS and short:
        words = size_words(distance.family, distance.size)
        why = "its search begins where the restarts of the size curve end and takes more steps."
        if distance.family in TEXTS:
            why = "of texts that hold on validation it shows the cheapest; the bound counts those that hold on both."
        notes.append(f"The size curve does not reach the threshold at {words}, and the bound does: {why}")
    rate = confirmation(result)[0]
    if distance.upper is not None and rate is not None and rate < 0.5:
        notes.append(
            f"Only {about(100 * rate, 0)}% of the hits pass on a second set of items: "
            "the upper bound is luck with these items."
        )
    if distance.upper is not None and distance.unreached_controls:
        count = distance.unreached_controls
        notes.append(
            f"{count} control{'' if count == 1 else 's'} at the same size and budget "
            f"{'was' if count == 1 else 'were'} not reached, which says nothing of how far "
            f"{'it lies: it is' if count == 1 else 'they lie: they are'} left out of the difference, and the rank is a "
            "range."
        )
    every = controls_of(result)
    nulls = [subject for subject in every if subject.kind == "permuted"]
    controls = [subject for subject in every if subject.kind != "permuted"]
    if nulls:
        fell = sum(subject.upper is not None or subject.unbounded != "not broken" for subject in nulls)
        notes.append(
            f"{fell} of {len(nulls)} nulls reached the threshold: the same replies given to other contexts, which "
            "nothing that learns should reach on other items. They give no difference and no rank."
        )
    if distance.upper is not None and distance.excess is None and controls:
        tried = sorted({subject.size or 0 for subject in controls})
        at = " and ".join(size_words(distance.family, size) for size in tried)
        notes.append(f"No difference to the controls: at {at}, where they ran, it takes a bound of both.")
    names = set(result.points.filter(pl.col("role") == "control")["control"].to_list())
    count = len(names - {subject.name for subject in nulls})
    if count == 0:
        notes.append("No controls were run: without them the number is not a finding.")
    elif count < ENOUGH_CONTROLS:
        notes.append(
            f"A quick look, with {count} control{'' if count == 1 else 's'}: a finding takes at least "
            f"{ENOUGH_CONTROLS} (--controls {ENOUGH_CONTROLS}), since phrases, and searches for one, differ "
            "more than the draws of one do."
        )
    if distance.upper is not None and (spread := result.break_even()) is not None:
        bits, held_out, contexts = spread
        notes.append(
            "Replies differ from context to context and the distance is paid once for all: at most "
            f"{at_most(bits)} bits an item here. It pays from about {contexts:.0f} contexts on, where it has saved as "
            f"many bits as it costs (an estimate, from {held_out} validation items)."
        )
    frontier = result.cheapest()
    if frontier.family is not None and frontier.family != distance.family:
        name = {"prefill": "spelling the reply out (prefill)", "null": "doing nothing (null)"}
        cost = frontier.distances[frontier.family].upper
        price = at_most(cost.value) if cost else NONE
        words = f"The cheapest way known is {name.get(frontier.family, frontier.family)}, at most {price} bits"
        if distance.upper is None:
            notes.append(f"{words}.")
        elif cost is not None and cost.value < distance.upper.value:
            notes.append(f"{words}: it dominates the bound of {distance.family}.")
    return notes


def _curve_headline(result: Result, label: str, reason: str) -> Headline:
    """Size 0 against the best size, in bits a reply."""
    for curve in result.curves.values():
        rows = [r for r in curve.size_curve().iter_rows(named=True) if finite(r["loss_bits"])]
        start = next((row for row in rows if row["size"] == 0), None)
        sized = {row["size"]: row for row in rows if row["size"] > 0}
        if start is None or not sized:
            continue
        # The size is chosen on validation items; the interval of the one that is best on test items would be too high.
        order = [size for size in curve.sizes_by_validation_loss() if size in sized]
        best = sized[order[0]] if order else min(sized.values(), key=lambda row: row["loss_bits"])
        words = size_words(curve.family, best["size"])
        gain = span(best["gain_low"], best["gain_high"])
        if finite(best["gain_low"]) and best["gain_low"] <= 0.0 <= best["gain_high"]:
            said = (
                f"flat. With {words} a reply costs as many bits as with none, as far as these items can tell: {gain} "
            )
            said += f"fewer than {about(start['loss_bits'])}."
        elif best["loss_bits"] >= start["loss_bits"]:
            said = f"no size takes bits off the {about(start['loss_bits'])} bits a reply of size 0"
            said += f" ({words}: {gain} fewer, item by item)." if gain != NONE else "."
        else:
            said = f"{words} bring{'s' if best['size'] == 1 else ''} the loss from {about(start['loss_bits'])} to "
            said += f"{about(best['loss_bits'])} bits a reply"
            said += f" ({gain} fewer, item by item)." if gain != NONE else "."
        return Headline(f"{label}: {said}", "curves only", (reason,))
    return Headline(f"{label}: no distance can be given.", "curves only", (reason,))


def _row(result: Result, control: str, family: str, size: int, estimator: str | None) -> dict[str, Any]:
    """The certified row of one subject, size and estimator; empty where there is none."""
    rows = result.points.filter(
        (pl.col("control") == control)
        & (pl.col("role") == ("control" if control else "behaviour"))
        & (pl.col("family") == family)
        & (pl.col("size") == size)
        & (pl.col("estimator") == (estimator or "none"))
        & pl.col("upper_bits").is_not_null()
    )
    return rows.row(0, named=True) if len(rows) else {}


def _counted(row: Mapping[str, Any]) -> bool:
    return finite(row.get("estimate_bits")) and finite(row.get("stderr_bits"))


def _lower(result: Result, control: str, family: str, size: int) -> float | None:
    rows = result.points.filter(
        (pl.col("control") == control) & (pl.col("family") == family) & (pl.col("size") == size)
    )
    values = rows["lower_bits"].drop_nulls().to_list()
    return max(values) if values else None


def _direct(result: Result, control: str) -> float | None:
    """The price of spelling a reply out, from its prefill row."""
    rows = result.points.filter((pl.col("control") == control) & (pl.col("family") == "prefill"))
    values = rows["upper_bits"].drop_nulls().to_list()
    return float(values[0]) if values else None
