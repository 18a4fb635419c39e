"""The score card of a suite: in the terminal one row a model and behaviour, those without a number among them, and the
page of the runs that have numbers.

Plain characters and 80 columns. Knows nothing of how a suite is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console, JustifyMethod
from rich.text import Text

from leadline.agreement import agreements
from leadline.gate import Verdict
from leadline.information import at_least, at_most
from leadline.report.columns import dots, print_table
from leadline.report.headline import distance_of, headline
from leadline.report.page import write_page
from leadline.report.words import NONE, about, bound_notes, interval, plain, short
from leadline.result import Result

BOUNDS: dict[str, JustifyMethod] = {
    "behaviour": "left", "at most": "right", "its 95%": "left", "at least": "right", "gate": "left",
}  # fmt: skip
BESIDE: dict[str, JustifyMethod] = {
    "behaviour": "left", "Delta": "right", "95%": "left", "rank": "right", "cheapest": "left", "at most": "right",
}  # fmt: skip
AGREEING: dict[str, JustifyMethod] = {
    "prior": "left", "and prior": "left", "rho": "right", "p": "right", "behaviours": "right",
}  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """One row of a score card. reason: why there is no result; verdict: of the gate, where one was asked"""

    model: str
    behaviour: str
    folder: Path
    state: Literal["measured", "refused", "failed"]
    reason: str = ""
    result: Result | None = None
    verdict: Verdict | None = None


def print_card(rows: Sequence[Scored], console: Console, gate_bits: float | None = None) -> None:
    """Print the card: for each model the bounds, what they are beside controls and other ways in, whether priors agree
    on the order, and what is to be said of single rows."""
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        columns = BOUNDS if gate_bits is not None else {name: side for name, side in BOUNDS.items() if name != "gate"}
        bounds = [_bounds(row)[: len(columns)] for row in mine]
        print_table(console, f"{model}: distance, bits", columns, bounds, bound_notes(row[1] for row in bounds))
        beside = [cells for row in mine if (cells := _beside(row))]
        if beside:
            lines = [
                "Delta: how much farther its controls lie, by the same bound at the same size. rank: 1 is nearest.",
                "cheapest: the family with the least bound, and all families together, their choice paid.",
            ]
            print_table(console, f"{model}: beside controls and other ways in, bits", BESIDE, beside, lines)
        if alike := agreements([row.result for row in mine if row.result is not None]):
            ranked = [(a.first, a.second, f"{a.rho:.2f}", f"{a.p:.2g}", str(a.behaviours)) for a in alike]
            lines = [
                "Spearman's rho of the upper bounds, of behaviours that have both; p: share of all orders that agree "
                "at least as well.",
                "Where two priors disagree, what is near and what is far depends on the prior.",
            ]
            print_table(console, f"{model}: ranks under two priors", AGREEING, ranked, lines)
    said = [(row, words) for row in rows if (words := _words(row, gate_bits))]
    if said:
        console.print()
    if sum(row.verdict is not None for row, _ in said) > 1:
        console.print(Text("Each answer holds at 95% by itself, not all of them together."))
    for row, words in said:
        console.print(Text(plain(f"{row.behaviour} on {row.model}: {words}")))


def show_card(rows: Sequence[Scored], console: Console, folder: Path, gate_bits: float | None = None) -> None:
    """`print_card`, then the page of all measured runs in the suite's folder, and where it is."""
    print_card(rows, console, gate_bits)
    if measured := [row.folder for row in rows if row.result is not None]:
        page = write_page(measured, folder / "report.html")
        words = f"page of the {len(measured)} measured of {len(rows)} runs: {plain(page)}"
        console.print()
        console.print(Text(words), soft_wrap=True)


def _bounds(row: Scored) -> tuple[str, ...]:
    answer = row.verdict.answer if row.verdict is not None else NONE
    if row.result is None:
        return short(row.behaviour), row.state, NONE, NONE, answer
    distance, _ = distance_of(row.result)
    if distance is None:
        return short(row.behaviour), "curves only", NONE, NONE, answer
    upper, lower = distance.upper, distance.lower
    return (
        short(row.behaviour),
        at_most(upper.value) if upper is not None else distance.unbounded,
        dots(interval(upper)),
        at_least(lower.value) if lower is not None else NONE,
        answer,
    )


def _beside(row: Scored) -> tuple[str, ...]:
    """Nothing for a row without a distance."""
    distance = distance_of(row.result)[0] if row.result is not None else None
    if row.result is None or distance is None:
        return ()
    place, unreached, frontier = distance.rank, distance.unreached_controls, row.result.cheapest()
    span = f"{place[0]}-{place[0] + unreached}" if place and unreached else str(place[0]) if place else ""
    return (
        short(row.behaviour),
        about(distance.excess.value) if distance.excess is not None else NONE,
        dots(interval(distance.excess)),
        f"{span}/{place[1]}" if place else NONE,
        frontier.family or NONE,
        at_most(frontier.upper.value) if frontier.upper is not None else NONE,
    )


def _words(row: Scored, gate_bits: float | None) -> str:
    if row.result is None:
        return f"{row.state}: {row.reason}"
    if row.verdict is not None:
        return f"{row.verdict.answer}, distance >= {gate_bits:g}: {row.verdict.reason.rstrip('.')}."
    return headline(row.result).sentence if distance_of(row.result)[0] is None else ""
