"""Runs side by side in the terminal: bounds, score and loss saved, excess over controls, and cost, a line a run.

Plain characters and 80 columns. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, JustifyMethod
from rich.text import Text

from leadline.compare import (
    Difference,
    Side,
    bound_difference,
    incomparable,
    loss_difference,
    saved_difference,
    score_difference,
)
from leadline.estimators.combine import brute_force, upper_bits
from leadline.information import at_least, at_most
from leadline.report.columns import dots, print_lines, print_table
from leadline.report.headline import behaviour_label, distance_of
from leadline.report.rows import cost_words
from leadline.report.words import NONE, about, bound_notes, interval, plain, span
from leadline.result import NoDistance
from leadline.sentences import rank_words

BOUNDS: dict[str, JustifyMethod] = {
    "size": "right", "run": "left", "at most": "right", "its 95%": "left", "at least": "right", "by": "left",
    "minus #1": "right", "95%": "left",
}  # fmt: skip
ITEMS: dict[str, JustifyMethod] = {
    "size": "right", "run": "left", "score": "right", "95%": "left", "minus #1": "right", "95% ": "left",
    "loss": "right", "saved": "right", "minus #1 ": "right", " 95%": "left",
}  # fmt: skip
EXCESS: dict[str, JustifyMethod] = {
    "family": "left", "run": "left", "at most": "right", "at least": "right", "Delta": "right", "95%": "left",
    "rank": "right", "to": "left",
}  # fmt: skip
PAIRINGS: dict[str, str] = {
    "paired": "paired item by item",
    "added": "not paired (targets or items differ, are not on record one by one, or score alike): intervals added",
    "independent": "not paired, no item in common: squares of intervals added",
}


def print_comparison(sides: Sequence[Side], console: Console) -> None:
    """Print runs beside the first of them."""
    console.print()
    for number, side in enumerate(sides, 1):
        words = (
            f"#{number}  {behaviour_label(side.result.spec)} on {side.result.spec['spec']['model']}  ({side.folder})"
        )
        console.print(Text(plain(words)), soft_wrap=True)
    for number, side in enumerate(sides[1:], 2):
        said = ""
        if reason := incomparable(sides[0], side):
            said = f"#{number} is not subtracted: {reason}"
        elif sides[0].items != side.items:
            said = f"#{number} was measured on other test items than #1, or with other targets"
        if said:
            console.print(Text(said, style="dim"))
    families = dict.fromkeys(family for side in sides for family in side.result.families if family != "null")
    shown = [cell for family in families for cell in _bounds(sides, family, console)]
    if shown:
        words = "each size by itself, its choice not paid; minus #1: point estimates of the same bound"
        print_lines(console, [words, *bound_notes(shown)])
    for family in families:
        if family != "prefill":
            _items(sides, family, console)
    _excess(sides, list(families), console)
    console.print()
    for number, side in enumerate(sides, 1):
        console.print(Text(f"#{number}  {cost_words(side.result.points)}", style="dim"))


def _bounds(sides: Sequence[Side], family: str, console: Console) -> list[str]:
    """Prints the table of one family's bounds; its column of upper ones."""
    sizes = sorted({size for side in sides for name, size in side.bounds if name == family})
    rows = []
    for size in sizes:
        for number, side in enumerate(sides, 1):
            found = side.bounds.get((family, size))
            if found is None:
                continue
            upper = upper_bits(found.row, 1.0, "") if found.row is not None else None
            lower, _ = brute_force([found], "", side.result.threshold)
            less = bound_difference(sides[0], side, family, size) if number > 1 else None
            most = at_most(upper.value) if upper is not None else _unbounded(side, family, size)
            rows.append((
                str(size or ""), f"#{number}", most,
                dots(interval(upper)), at_least(lower.value) if lower is not None else NONE,
                upper.estimator if upper is not None else NONE,
                about(less.value) if less is not None else NONE, dots(interval(less)),
            ))  # fmt: skip
    if rows:
        print_table(console, f"{family}: distance by size, bits", BOUNDS, rows)
    return [row[2] for row in rows]


def _unbounded(side: Side, family: str, size: int) -> str:
    """What stands in the place of a size's upper bound where there is none."""
    return "no bound" if (side.held_out(family, size) or {}).get("outcome") == "reached" else "not broken"


def _items(sides: Sequence[Side], family: str, console: Console) -> None:
    curves = [side.result.curve(family).size_curve()["size"].to_list() for side in sides]
    rows: list[Sequence[str]] = []
    notes: dict[str, list[str]] = {}
    for size in sorted({size for sizes in curves for size in sizes}):
        for number, side in enumerate(sides, 1):
            row = side.held_out(family, size)
            if row is None:
                continue
            score = saved = None
            if number > 1:
                score = score_difference(sides[0], side, family, size)
                saved = saved_difference(sides[0], side, family, size) if size else None
                for what, one in (("score", score), ("saved", saved)):
                    if one is not None:
                        notes.setdefault(PAIRINGS[one.pairing], []).append(f"#{number} {what} {size}")
            rows.append((
                str(size), f"#{number}", about(row["score"], 2), dots(span(row["score_low"], row["score_high"], 2)),
                *_difference(score, 2), about(row["loss_bits"]), about(row["gain_bits"]), *_difference(saved),
            ))  # fmt: skip
    lines = ["saved: bits a reply fewer than size 0; differences by run, column and size:"]
    lines += [f"{how}: {', '.join(which)}" for how, which in notes.items()]
    for number, side in enumerate(sides[1:], 2):
        if (loss := loss_difference(sides[0], side, family, 0)) is not None:
            words = f"loss at size 0, #{number} minus #1: {about(loss.value)} bits ({span(loss.low, loss.high)})"
            lines.append(f"{words}, {PAIRINGS[loss.pairing]}")
    print_table(console, f"{family}: held-out items by size, loss in bits a reply", ITEMS, rows, lines)


def _excess(sides: Sequence[Side], families: Sequence[str], console: Console) -> None:
    rows = []
    for family in families:
        for number, side in enumerate(sides, 1):
            try:
                distance = side.result.distance(family=family)
            except NoDistance:  # that family was not measured there, or the behaviour has a loss alone
                continue
            upper, lower, excess = distance.upper, distance.lower, distance.excess
            rows.append((
                family, f"#{number}", at_most(upper.value) if upper is not None else distance.unbounded,
                at_least(lower.value) if lower is not None else NONE,
                about(excess.value) if excess is not None else NONE, dots(interval(excess)),
                rank_words(distance) or NONE, distance.whom if excess is not None else NONE,
            ))  # fmt: skip
    reasons = [f"#{n}: {distance_of(side.result)[1]}" for n, side in enumerate(sides, 1) if distance_of(side.result)[1]]
    if rows:
        lines = ["all sizes together, their choice paid; Delta: how much farther those controls lie", *reasons]
        print_table(console, "distance and excess over controls, bits", EXCESS, rows, lines)
    for reason in reasons if not rows else ():
        console.print(Text(plain(reason)))


def _difference(found: Difference | None, digits: int | None = None) -> tuple[str, str]:
    return (NONE, NONE) if found is None else (about(found.value, digits), dots(span(found.low, found.high, digits)))
