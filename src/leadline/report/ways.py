"""The ways in: bits against score, one line a family, on one axis. Drawn where a run has measured several families.

Drawn from a Result alone; knows nothing of the page around it.
"""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from leadline.curve import Curve
from leadline.information import at_most, size_weights, surprisal
from leadline.report.headline import behaviour_label
from leadline.report.rendering import MARK, SERIES
from leadline.report.words import about, plain, size_words
from leadline.result import NoDistance, Result
from leadline.sentences import UNCHOSEN

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
WIDE, NARROW = (820, 320), (300, 260)


def ways_in(result: Result, wide: bool = True) -> Any | None:
    """Bits against score: for every family the best validation score that a q of at most so many bits of KL reached,
    its size paid for, and a large mark where the certified bound lies. None for a run of a single family."""
    families = [family for family, curve in result.curves.items() if curve.sizes]
    if len(families) < 2:
        return None
    bounds = _bounds(result)
    names = [*families, *(row["family"] for row in bounds if row["family"] not in families)]
    steps = [row for family in families for row in envelope(result.curve(family))]
    panel = WIDE if wide else NARROW
    x = alt.X(
        "bits:Q", scale={"type": "sqrt", "zero": True, "nice": True},
        axis={"title": "bits, the choice of a size paid", "grid": False, "tickCount": 9 if wide else 5},
    )  # fmt: skip
    y = alt.Y(
        "score:Q", scale={"domain": [0, 1], "nice": False},
        axis={"title": None, "domain": False, "ticks": False, "tickCount": 5},
    )  # fmt: skip
    legend = {"columns": 4 if wide else 2, "symbolOpacity": 1}
    colours = [SERIES[place % len(SERIES)] for place in range(len(names))]
    # more families than colours: the second round of colours has other shapes
    shapes = [SHAPES[(place + place // len(SERIES)) % len(SHAPES)] for place in range(len(names))]
    colour = alt.Color("family:N", scale={"domain": names, "range": colours}, legend=legend)
    shape = alt.Shape("family:N", scale={"domain": names, "range": shapes}, legend=legend)
    tau = alt.InlineData(values=[{"score": result.threshold, "words": f"tau = {result.threshold:g}"}])
    layers = [
        alt.Chart(tau).mark_rule(color=MARK, strokeDash=[5, 4], strokeWidth=1.4).encode(y=y),
        alt.Chart(tau).mark_text(color=MARK, align="left", baseline="bottom", dx=3, dy=-3, fontSize=12)
        .encode(x=alt.value(0), y=y, text="words:N"),
        alt.Chart(alt.InlineData(values=steps)).mark_line(interpolate="step-after", strokeWidth=1.6, opacity=0.85)
        .encode(x=x, y=y, color=colour, order="bits:Q"),
        alt.Chart(alt.InlineData(values=steps)).mark_point(filled=True, size=30, opacity=0.7)
        .encode(x=x, y=y, color=colour, shape=shape, description="words:N"),
        alt.Chart(alt.InlineData(values=bounds)).mark_point(filled=True, size=170, opacity=1)
        .encode(x=x, y=y, color=colour, shape=shape, description="words:N"),
    ]  # fmt: skip
    title = {"text": f"ways into {behaviour_label(result.spec, 60 if wide else 20)}: bits against score"}
    return alt.layer(*layers).properties(width=panel[0], height=panel[1], title=title)


def envelope(curve: Curve) -> list[dict[str, Any]]:
    """The steps of one family: bits of KL with the size paid, against the best validation score up to there."""
    rows = [
        row for row in curve.rate_distortion().iter_rows(named=True)
        if all(row[name] is not None and math.isfinite(row[name]) for name in ("kl_bits", "score"))
    ]  # fmt: skip
    sizes = sorted({*curve.asked, *(row["size"] for row in rows)})
    charge = {size: surprisal(weight) for size, weight in size_weights(sizes).items()} if sizes else {}
    steps: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["kl_bits"] + charge[row["size"]], -row["score"])):
        if not steps or row["score"] > steps[-1]["score"]:
            bits = row["kl_bits"] + charge[row["size"]]
            what = f"{curve.family}, {size_words(curve.family, row['size'])}"
            words = f"{what}: {about(bits)} bits, score {row['score']:.2f}"
            steps.append({"family": curve.family, "bits": bits, "score": row["score"], "words": words})
    return steps


def _bounds(result: Result) -> list[dict[str, Any]]:
    """Where each family's certified upper bound lies, at the threshold."""
    found = []
    for family in result.families:
        if family == "best_of_n":  # bits a reply: not on this axis
            continue
        try:
            upper = result.distance(family=family).upper
        except NoDistance:
            return []
        if upper is not None and math.isfinite(upper.value):
            words = f"{family}: certified at most {at_most(upper.value)} bits"
            found.append({"family": family, "bits": upper.value, "score": result.threshold, "words": words})
    return found


def cheapest_words(result: Result) -> str:
    """The cheapest way in, in words, and what the others cost; "" where no distance is defined."""
    try:
        frontier = result.cheapest()
    except NoDistance:
        return ""
    distances = {family: d for family, d in frontier.distances.items() if family != "best_of_n"}
    found = {family: d.upper.value for family, d in distances.items() if d.upper is not None}
    open_ends = [family for family, d in distances.items() if d.upper is None and family != "null"]
    if not found:
        return f"No way in was found: {', '.join(map(_said, open_ends))}."
    if frontier.family is None:
        alone = ", ".join(f"{_said(family)} {at_most(bits)}" for family, bits in found.items())
        return f"{UNCHOSEN[0].upper()}{UNCHOSEN[1:]}; by themselves at most, bits: {alone}."
    order = sorted(found, key=lambda family: (family != frontier.family, found[family], family))
    by = "" if found[order[0]] == min(found.values()) else " by validation draws"
    words = f"The cheapest way in{by} is {_said(order[0])}, at most {at_most(found[order[0]])} bits"
    if order[1:]:
        words += "; " + ", ".join(f"{_said(family)} {at_most(found[family])}" for family in order[1:])
    return words + (f"; without a bound: {', '.join(map(_said, open_ends))}." if open_ends else ".")


def text_lines(result: Result) -> list[str]:
    """The texts that were found for the behaviour, family by family and size by size, and those that certified soft
    tokens stand around; quoted so that nothing hides in them."""
    extra, lines = result.spec.get("extra", {}), []
    for name, text in extra.get("texts", {}).items():
        task, family, size = name.rsplit("/", 2)
        if not task:
            alike = result.points.filter(role="behaviour", family=family, size=int(size), estimator="TEXT UNIFORM")
            bits = [at_most(upper) for upper in alike["upper_bits"]]
            told = f" (at most {bits[0]} bits if all texts of that length were alike)" if bits else ""
            lines.append(f"The text of {size_words(family, int(size))}: {plain(ascii(text), 400)}{told}")
    standing = result.points.filter(role="behaviour", estimator="COND").drop_nulls("component_bits")
    for row in standing.to_dicts():
        anchor = extra.get("anchors", {}).get(f"/{row['family']}/{row['size']}/{row['seed']}")
        if anchor is not None:  # told once the run has finished
            what = f"The text around which {size_words(row['family'], row['size'])} stand"
            lines.append(f"{what}: {plain(ascii(anchor['string']), 400)}")
    return lines


def message_lines(result: Result) -> list[str]:
    """How long each family's shortest message is, and what the number is not."""
    found = {family: told.upper for family in result.families if (told := result.message(family)) is not None}
    said = [f"{_said(family)} {upper.value:.0f}" for family, upper in found.items() if upper is not None]
    what = "Written as bytes that decode to what works (CODE, under the code's own prior, so not the distance), bits: "
    return [f"{what}{', '.join(said)}."] if said else []


def _said(family: str) -> str:
    return {"prefill": "spelling it out (prefill)", "null": "doing nothing"}.get(family, family.replace("_", " "))
