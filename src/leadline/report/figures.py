"""The three figures of a run as altair charts.

Each exists wide (for a desk) and narrow (for a phone). Drawn from a Result alone; knows nothing of the page around
it, nor of how a chart becomes a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import altair as alt
import polars as pl

from leadline.curve import Curve
from leadline.information import at_least, at_most
from leadline.report.headline import Subject, behaviour_label, subjects
from leadline.report.rendering import DEEP, INK, MARK, MUTED, SHOAL, dressed
from leadline.report.ways import ways_in
from leadline.report.words import UNITS, about, short, size_words
from leadline.result import NoDistance, Result

SHAPES = {
    "behaviour": "circle",
    "uniform": "square",
    "shuffled": "triangle-up",
    "phrase": "cross",
    "matched": "diamond",
    "nearest": "triangle-down",
    "relabelled": "triangle-up",
    "permuted": "square",
}
LEGEND = {"uniform": "control: uniform tokens", "shuffled": "control: its tokens shuffled",
          "phrase": "control: another phrase", "matched": "control: as unlikely",
          "nearest": "control: nearest in cost", "relabelled": "control: labels exchanged",
          "permuted": "null: replies permuted"}  # fmt: skip
HULL_STEPS = 16
TICKS, APART = 5, {"labelOverlap": "greedy", "labelSeparation": 4}
# Panels in pixels: two side by side on a desk, one on a desk, one on a phone.
HALF, WHOLE, NARROW = (412, 250), (860, 280), (300, 210)

Values = list[dict[str, Any]]


def plot(result: Result, wide: bool = True) -> Any:
    """All figures of a run as one altair chart: sounding, ways in, size curve and rate-distortion curve."""
    drawn = (sounding(result, wide), ways_in(result, wide), size_curve(result, wide), rate_distortion(result, wide))
    charts = [chart for chart in drawn if chart is not None]
    stacked = alt.vconcat(*charts, spacing=40) if charts else alt.Chart(_inline([])).mark_point()
    return dressed(stacked.resolve_scale(color="independent", shape="independent"))


# The three figures -----------------------------------------------------------------------------------------------


def sounding(result: Result, wide: bool = True) -> Any | None:
    """How deep everything lies, in bits: lower to upper bound of the behaviour and of each control, and direct costs.

    None where the run has no distance.
    """
    found = _at_one_size(result)
    depths = [bits for s in found for bits in (s.upper, s.lower, s.direct_bits) if bits is not None and bits < math.inf]
    if not depths:
        return None
    end = max(*depths, 1.0) * 1.08
    base = alt.Chart(_inline([_sounding_row(s, place, end, wide) for place, s in enumerate(found)]))
    y = alt.Y("place:Q", scale={"domain": [-0.6, len(found) - 0.4], "reverse": True, "nice": False}, axis=None)
    scale = {"domain": [0, end], "nice": False}
    x = alt.X(
        "from:Q", scale=scale, axis={"title": "bits below the surface", "tickCount": 8 if wide else 5, "tickSize": 0}
    )
    both = ["behaviour", "control"]
    colour = alt.Color("role:N", scale={"domain": both, "range": [DEEP, SHOAL]}, legend=None)
    at = {"y": y, "color": colour, "description": "words:N"}
    closed, certified = base.transform_filter("isValid(datum.to)"), base.transform_filter("isValid(datum.lower)")
    direct = base.transform_filter("isValid(datum.direct)")
    words = base.encode(y=y, color=alt.value(INK))
    layers = [
        base.mark_rule(strokeWidth=1.5, opacity=0.8).encode(x=x, x2="zero:Q", **at),
        base.transform_filter("datum.open").mark_rule(strokeDash=[2, 5], strokeWidth=3, opacity=0.8)
        .encode(x=x, x2="end:Q", **at),
        closed.mark_bar(height=13, opacity=0.28).encode(x=x, x2="to:Q", **at),
        certified.mark_tick(thickness=2, size=19, orient="vertical").encode(x="lower:Q", **at),
        closed.mark_tick(thickness=4, size=19, orient="vertical").encode(x="to:Q", **at),
        direct.mark_point(shape="diamond", size=56, filled=False, strokeWidth=1.6, opacity=1)
        .encode(x="direct:Q", y=y, color=alt.value(INK), description="direct_words:N"),
        words.mark_text(align="left", baseline="bottom", dy=-13, dx=4, fontSize=13)
        .encode(x=alt.value(0), text="name:N"),
        words.mark_text(align="right", baseline="bottom", dy=-13, fontSize=13, fontWeight=600)
        .encode(x=alt.value("width"), text="bounds:N"),
    ]  # fmt: skip
    key = ["Ticks: certified lower and upper bound.", "Diamond: the bits it takes to spell the reply out."]
    title = {"text": [" ".join(key)] if wide else key, "fontWeight": "normal", "color": MUTED, "fontSize": 12}
    return alt.layer(*layers).properties(width=884 if wide else 318, height=48 * len(found) + 6, title=title)


def size_curve(result: Result, wide: bool = True) -> Any | None:
    """Size against the held-out score and loss: every restart, the chosen one, the envelope, intervals, controls.

    Sizes are spaced by doublings with size 0 one step before size 1. None where no size was run.
    """
    panels = []
    for family, curve in result.curves.items():
        if not curve.sizes:
            continue
        curves = [curve, *(result.curve(family, name) for name in _control_names(result))]
        names = _legend_names(result)
        points, restarts, steps = [], [], []
        for rank, one in enumerate(curves):
            shift = 0.0 if rank == 0 else 0.1 + min(0.1, 0.45 / len(curves)) * (rank - 1)
            points += [_point(row, one, names, shift) for row in one.size_curve().iter_rows(named=True)]
            restarts += [_point(row, one, names, shift) for row in _restarts(one).iter_rows(named=True)]
            steps += [
                {"x": _place(row["size"]) + shift, "score": row["score"], "loss": row["loss_bits"],
                 "who": names[one.control], "control": one.control}
                for row in one.envelope().iter_rows(named=True)
            ]  # fmt: skip
        kinds = [kind for kind in ("score", "loss") if any(_drawable(p[kind]) for p in (*points, *restarts))]
        shape = _panel_size(wide, len(kinds))
        drawn = [_size_panel(kind, curve, names, points, restarts, steps, result.threshold, shape) for kind in kinds]
        panels.append(_side_by_side(drawn, family, result, wide))
    return alt.vconcat(*panels, spacing=40) if panels else None


def _side_by_side(drawn: list[Any], family: str, result: Result, wide: bool) -> Any:
    """The panels of one family, under its name where there are several."""
    title = {"title": family} if len(result.curves) > 1 else {}
    return alt.hconcat(*drawn, spacing=34, **title) if wide else alt.vconcat(*drawn, spacing=26, **title)


def rate_distortion(result: Result, wide: bool = True) -> Any | None:
    """KL in bits against the loss and the score: every beta, the lower hull, the bracket of tau, controls.

    None where no beta was run. KL and loss are spaced by square roots, on which a straight mixture line bends.
    """
    panels = []
    for family, curve in result.curves.items():
        curves = [curve, *(result.curve(family, name) for name in _control_names(result))]
        names, size, hulls, points = _legend_names(result), reported_size(result, family), [], []
        for one in curves:
            rows = one.rate_distortion().iter_rows(named=True)
            points += [
                _point(row, one, names)
                | {"kl": row["kl_bits"], "reported": row["size"] == size}
                for row in rows if _drawable(row["kl_bits"])
            ]  # fmt: skip
            hulls += [
                {"kl": kl, "loss": loss, "who": names[one.control], "control": one.control} for kl, loss in _hull(one)
            ]
        kinds = [kind for kind in ("loss", "score") if any(_drawable(p[kind]) for p in points)]
        shape, ends = _panel_size(wide, len(kinds)), bracket(result, family)
        drawn = [_rate_panel(kind, points, hulls, names, ends, result.threshold, shape) for kind in kinds]
        if drawn:
            panels.append(_side_by_side(drawn, family, result, wide))
    return alt.vconcat(*panels, spacing=40) if panels else None


def bracket(result: Result, family: str) -> tuple[float, float] | None:
    """KL bits between which the score passes tau at the reported size; None where no beta is on either side of it."""
    rows = result.curve(family).rate_distortion().filter(pl.col("size") == reported_size(result, family))
    rows = rows.filter(pl.col("kl_bits").is_finite() & pl.col("score").is_finite())
    reaching = rows.filter(pl.col("score") >= result.threshold - 1e-12)["kl_bits"].to_list()
    if not reaching:
        return None
    below = [
        kl for kl in rows.filter(pl.col("score") < result.threshold - 1e-12)["kl_bits"].to_list() if kl < min(reaching)
    ]
    return (max(below), min(reaching)) if below else None


def reported_size(result: Result, family: str) -> int:
    """The size whose bound is reported, else the smallest on the rate-distortion curve; 0 where there is neither."""
    with suppress(NoDistance):
        if (size := result.distance(family=family).size) is not None:
            return size
    return min(result.curve(family).rate_distortion()["size"].to_list(), default=0)


# Their parts -----------------------------------------------------------------------------------------------------


def _at_one_size(result: Result) -> list[Subject]:
    """The behaviour at its reported size and at the controls', and each control once: at the behaviour's reported size,
    else at the smallest that it ran at."""
    found = subjects(result)
    once: dict[str, Subject] = {}
    for subject in sorted(found, key=lambda s: (s.is_control, s.size != found[0].size, s.size or 0)):
        once.setdefault(subject.name, subject)
    return sorted(once.values(), key=found.index)


def _sounding_row(subject: Subject, place: int, end: float, wide: bool) -> dict[str, Any]:
    upper = subject.upper if _drawable(subject.upper) else None
    name = subject.name if not subject.is_control else f"{subject.name}: {short(subject.target, 60)}"
    if upper is None:
        bounds = subject.unbounded + (f", >= {at_least(subject.lower)} bits" if subject.lower is not None else "")
    else:
        bounds = (
            f"{at_least(subject.lower)} to {at_most(upper)} bits"
            if subject.lower is not None
            else f"<= {at_most(upper)} bits"
        )
    return {
        "place": place, "role": "control" if subject.is_control else "behaviour", "zero": 0,
        "from": subject.lower or 0.0,
        "lower": subject.lower, "to": upper, "end": end, "open": upper is None, "direct": subject.direct_bits,
        "name": short(name, 90 if wide else 27), "bounds": bounds, "words": f"{short(name, 90)}: {bounds}",
        "direct_words": f"{short(name, 90)}: {about(subject.direct_bits)} bits to spell it out",
    }  # fmt: skip


def _size_panel(
    kind: str,
    curve: Curve,
    names: dict[str, str],
    points: Values,
    restarts: Values,
    steps: Values,
    tau: float,
    panel: tuple[int, int],
) -> Any:
    """One panel of the size curve. kind: "score" or "loss"."""
    ticks = sorted({p["size"] for p in (*points, *restarts)})
    last = max(_place(size) for size in ticks)
    x = alt.X(
        "x:Q", scale={"domain": [-0.2, last + 0.6], "nice": False},
        axis={
            "title": f"size, {UNITS.get(curve.family, curve.family)}s (0: nothing inserted)", "grid": False,
            "values": [_place(size) for size in ticks],
            "labelExpr": " : ".join([f"datum.value == {_place(s)!r} ? '{s}'" for s in ticks] + ["''"]),
        },
    )  # fmt: skip
    y = _y_axis(kind)
    colour, shape = _identity(names, panel)
    layers = [
        _lines(steps, kind, x, y, colour),
        alt.Chart(_data(restarts, kind)).mark_point(filled=True, size=34, opacity=0.35)
        .encode(x=x, y=y, color=colour, shape=shape, description="words:N"),
        alt.Chart(_inline([p for p in points if _drawable(p[f"{kind}_low"], p[f"{kind}_high"])]))
        .mark_rule(strokeWidth=1.5, opacity=0.85)
        .encode(x=x, y=alt.Y(f"{kind}_low:Q"), y2=f"{kind}_high:Q", color=colour),
        alt.Chart(_data(points, kind)).mark_point(filled=True, opacity=1)
        .encode(x=x, y=y, color=colour, shape=shape, size=_by_role(80, 48), description="words:N"),
    ]  # fmt: skip
    if kind == "score":
        layers = [*_threshold(tau, y), *layers]
    title = "score on held-out items" if kind == "score" else "loss on held-out items, bits a reply"
    return alt.layer(*layers).properties(width=panel[0], height=panel[1], title=title)


def _rate_panel(
    kind: str,
    points: Values,
    hulls: Values,
    names: dict[str, str],
    passing: tuple[float, float] | None,
    tau: float,
    panel: tuple[int, int],
) -> Any:
    """One panel of the rate-distortion curve. kind: "loss" or "score"."""
    x = alt.X(
        "kl:Q", scale={"type": "sqrt", "zero": True, "nice": True},
        axis={"title": "KL(q from prior), bits", "grid": False, "tickCount": 7 if panel[0] > NARROW[0] else 5, **APART},
    )  # fmt: skip
    y = _y_axis(kind)
    colour, shape = _identity(names, panel)
    layers = []
    if passing is not None:
        words = f"the score passes {tau:g} between {about(passing[0])} and {about(passing[1])} bits of KL"
        spot = _inline([{"kl": passing[0], "end": passing[1], "words": words}])
        layers.append(
            alt.Chart(spot).mark_rect(color=MARK, opacity=0.22, stroke=MARK, strokeWidth=1)
            .encode(x=x, x2="end:Q", description="words:N")
        )  # fmt: skip
    if kind == "loss":
        layers.append(_lines(hulls, kind, x, y, colour, order="kl:Q"))
    else:
        layers += _threshold(tau, y)
    for filled in (False, True):
        some = [p for p in points if p["reported"] is filled]
        layers.append(
            alt.Chart(_data(some, kind)).mark_point(filled=filled, size=56 if filled else 34, opacity=0.8)
            .encode(x=x, y=y, color=colour, shape=shape, description="words:N")
        )  # fmt: skip
    ring = [p for p in points if p["chosen"] and p["reported"] and p["control"] == ""]
    layers.append(
        alt.Chart(_data(ring, kind)).mark_point(filled=False, size=230, strokeWidth=1.6, color=MARK, opacity=1)
        .encode(x=x, y=y, description="words:N")
    )  # fmt: skip
    title = "score on validation draws" if kind == "score" else "loss on validation draws, bits a reply"
    return alt.layer(*layers).properties(width=panel[0], height=panel[1], title=title)


def _identity(names: dict[str, str], panel: tuple[int, int]) -> tuple[Any, Any]:
    """Colour and shape by who: one legend for both, the behaviour first and one entry a kind of control."""
    entries = list(dict.fromkeys(names.values()))
    kinds = {label: kind for kind, label in LEGEND.items()}
    shapes = [SHAPES["behaviour"] if place == 0 else SHAPES[kinds.get(e, "phrase")] for place, e in enumerate(entries)]
    colours = [DEEP] + [SHOAL] * (len(entries) - 1)
    legend = {"columns": 3 if panel[0] > NARROW[0] else 1, "symbolOpacity": 1, "symbolStrokeWidth": 1}
    return (
        alt.Color("who:N", scale={"domain": entries, "range": colours}, legend=legend),
        alt.Shape("who:N", scale={"domain": entries, "range": shapes}, legend=legend),
    )


def _lines(values: Values, kind: str, x: Any, y: Any, colour: Any, order: str = "x:Q", **mark: Any) -> Any:
    """One line a subject, the behaviour's stronger than the controls'."""
    return (
        alt.Chart(_data(values, kind)).mark_line(**mark)
        .encode(x=x, y=y, color=colour, detail="control:N", order=order,
                strokeWidth=_by_role(2.2, 1), opacity=_by_role(1, 0.7))
    )  # fmt: skip


def _by_role(behaviour: float, control: float) -> Any:
    """A measure of a mark that makes the behaviour stand before its controls."""
    return alt.condition("datum.control == ''", alt.value(behaviour), alt.value(control))


def _threshold(tau: float, y: Any) -> list[Any]:
    """The line that a score has to reach."""
    data = _inline([{"score": tau, "words": f"tau = {tau:g}"}])
    return [
        alt.Chart(data).mark_rule(color=MARK, strokeDash=[5, 4], strokeWidth=1.4).encode(y=y),
        alt.Chart(data).mark_text(color=MARK, align="left", baseline="bottom", dx=3, dy=-3, fontSize=12)
        .encode(x=alt.value(0), y=y, text="words:N"),
    ]  # fmt: skip


def _panel_size(wide: bool, panels: int) -> tuple[int, int]:
    return NARROW if not wide else (HALF if panels > 1 else WHOLE)


def _y_axis(kind: str) -> Any:
    far = {"type": "sqrt", "zero": True, "nice": TICKS}  # what a uniform control costs would flatten all else
    scale = {"domain": [0, 1.0], "nice": False} if kind == "score" else far
    return alt.Y(f"{kind}:Q", scale=scale, axis={"title": None, "domain": False, "ticks": False, "tickCount": TICKS})


def _point(row: dict[str, Any], curve: Curve, names: dict[str, str], shift: float = 0.0) -> dict[str, Any]:
    """One point of a figure with the words that a pointer over it shows."""
    who = curve.control or "the behaviour"
    words = [who, size_words(curve.family, row["size"]) if row["size"] else "size 0"]
    words += [f"restart {row['seed']}"] if row["seed"] >= 0 else []
    words += [f"beta {row['beta']:g}", f"KL {about(row['kl_bits'])} bits"] if row["beta"] is not None else []
    words += [f"loss {about(row['loss_bits'])} bits a reply", f"score {about(row['score'], 2)}", row["outcome"]]
    keep = {k: row[k] for k in ("size", "score", "score_low", "score_high", "loss_low", "loss_high", "chosen")}
    return keep | {
        "control": curve.control, "who": names[curve.control], "x": _place(row["size"]) + shift,
        "loss": row["loss_bits"], "words": ", ".join(words),
    }  # fmt: skip


def _restarts(curve: Curve) -> pl.DataFrame:
    """Every restart of the size curve, on validation items."""
    own = (pl.col("family") == curve.family) & (pl.col("estimator") == "") & (pl.col("split") == "validation")
    return curve.points.filter(own & pl.col("beta").is_null()).sort("size", "seed")


def _hull(curve: Curve) -> Iterable[tuple[float, float]]:
    """Points along the lower hull, close enough together that its straight lines stay true on a bent axis."""
    corners = [(row["kl_bits"], row["loss_bits"]) for row in curve.hull().iter_rows(named=True)]
    for (kl, loss), (next_kl, next_loss) in pairwise(corners):
        for step in range(HULL_STEPS):
            share = step / HULL_STEPS
            yield kl + share * (next_kl - kl), loss + share * (next_loss - loss)
    yield from corners[-1:]


def _control_names(result: Result) -> list[str]:
    rows = result.points.filter(pl.col("role") == "control")
    return [str(name) for name in rows["control"].unique(maintain_order=True).to_list()]


def _legend_names(result: Result) -> dict[str, str]:
    """What the legend calls the behaviour ("") and each control: controls of one kind share an entry."""
    kinds = {entry["name"]: entry.get("kind") for entry in result.spec.get("controls", [])}
    names = {name: LEGEND.get(str(kinds.get(name)), "control") for name in _control_names(result)}
    return {"": behaviour_label(result.spec, 34), **names}


def _place(size: int) -> float:
    """Where a size stands: 0 for nothing, 1 for one token, one more a doubling."""
    return 0.0 if size == 0 else round(1.0 + math.log2(size), 6)


def _drawable(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def _data(values: Values, kind: str) -> Any:
    return _inline([value for value in values if _drawable(value[kind])])


def _inline(values: Values) -> Any:
    return alt.InlineData(values=values)
