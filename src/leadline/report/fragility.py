"""What the solutions of a run bear, as tables: a family and size each, a column for the behaviour and each control.

Reads fragility.json; knows nothing of how its numbers were found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, JustifyMethod

from leadline.records import FRAGILITY, read_record
from leadline.report.columns import print_table
from leadline.report.words import NONE, plain, short, size_words
from leadline.result import Result
from leadline.spec import UserError

BLOCKS = 5  # of the residual stream shown in the terminal; the page has them all
READING = (
    "Noise and radii are shares of the prior's scale in every coordinate, so that their length grows with the "
    "dimensions: compare within a table. Wide solutions have a small KL by construction: hold fragility against size "
    "or location, not against KL. Noise borne: the largest at which 90% of draws reach the threshold."
)


@dataclass(frozen=True)
class Section:
    """One family and size.

    columns: subjects, the behaviour first;  rows: (quantity, unit, draws, one cell a subject)
    stream:  the rows of the residual stream, likewise, a block each
    nearest: (subject, a line a soft token)
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, str, tuple[str, ...]], ...]
    stream: tuple[tuple[str, str, str, tuple[str, ...]], ...]
    nearest: tuple[tuple[str, tuple[str, ...]], ...]
    warning: str
    lonely: bool


def read_fragility(folder: Path, result: Result) -> dict[str, Any] | None:
    """The record of a run, or None where there is none. Raises UserError where it is damaged or of another run."""
    path = folder / FRAGILITY
    if not path.is_file():
        return None
    how = "Run `leadline fragility` on the run again, or delete this file."
    try:
        record = read_record(folder, FRAGILITY)
    except UserError as error:
        raise UserError(error.what, str(path), how) from error
    if record.get("hash") != result.spec.get("hash"):
        raise UserError("This record belongs to another run", str(path), how)
    return record


def sections(record: Mapping[str, Any]) -> list[Section]:
    """One section a family and size, in the record's order."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for solution in record["solutions"]:
        groups.setdefault((solution["family"], solution["size"]), []).append(solution)
    return [_section(family, size, group, record["warning"]) for (family, size), group in groups.items()]


def _section(family: str, size: int, group: Sequence[Mapping[str, Any]], warning: str) -> Section:
    first = group[0]
    rows = [
        ("dimensions", "", "", tuple(str(one["dimensions"]) for one in group)),
        ("location", "bits", "", tuple(f"{one['location_bits']:.3g}" for one in group)),
    ]
    for place, number in enumerate(first["numbers"]):
        cells = tuple(_cell(one["numbers"][place]) for one in group)
        rows.append((number["name"], _unit(number), number["over"], cells))
    stream = [
        (
            f"stream change behind block {entry['block']}", "share of its norm", entry["over"],
            tuple(_change(one["stream"][place]) for one in group),
        )
        for place, entry in enumerate(first["stream"])
    ]  # fmt: skip
    nearest = [(_who(one), tuple(_tokens(*pair) for pair in enumerate(one["nearest"], 1))) for one in group]
    return Section(
        f"{family}, {size_words(family, size)}; prior {first['prior']}", tuple(map(_who, group)), tuple(rows),
        tuple(stream), tuple(pair for pair in nearest if pair[1]), warning, len(group) == 1,
    )  # fmt: skip


def _who(solution: Mapping[str, Any]) -> str:
    return plain(solution["control"]) or "behaviour"


def _unit(number: Mapping[str, Any]) -> str:
    return f"{number['unit']}, {number['kind']}"


def _cell(number: Mapping[str, Any]) -> str:
    """The number with its interval, or what happened instead; an end that is not known is an open one."""
    if number["value"] is None:
        return str(number["outcome"])
    value, low, high = number["value"], number["low"], number["high"]
    noted = "" if number["outcome"] == "found" else f" [{number['outcome']}]"
    if low == high == value:
        return f"{value:.3g}{noted}"
    return f"{value:.3g} ({_end(low)} to {_end(high)}){noted}"


def _change(entry: Mapping[str, Any]) -> str:
    """Relative change with its interval; the norm beside it."""
    change, norm = entry["relative_change"], entry["norm"]
    if change["value"] is None:
        return f"the stream was zero; norm {_end(norm['value'])}"
    ends = "" if change["low"] == change["high"] else f" ({_end(change['low'])} to {_end(change['high'])})"
    return f"{change['value']:.3g}{ends}, norm {_end(norm['value'])}"


def _end(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _tokens(place: int, found: Sequence[Mapping[str, Any]]) -> str:
    named = (f"{plain(repr(one['token']))} at {one['distance']:.3g} (cosine {one['cosine']:.2f})" for one in found)
    return f"soft token {place}: {', '.join(named)}"


def print_fragility(record: Mapping[str, Any], console: Console) -> None:
    """The tables in the terminal, and below each what has to be said with it."""
    for section in sections(record):
        columns: dict[str, JustifyMethod] = {"": "left"}
        columns |= dict.fromkeys(section.columns, "left")
        columns |= {"over": "left"}
        count = len(section.stream)
        shown = sorted({round(place * (count - 1) / max(1, BLOCKS - 1)) for place in range(BLOCKS)}) if count else []
        rows = [*section.rows, *(section.stream[place] for place in shown)]
        lines = [READING]
        if section.lonely:
            lines.append("No control was measured at this size: without one these are numbers and no finding.")
        if section.nearest:
            lines.append(section.warning)
            lines += [short(f"{who}, {line}", 200) for who, tokens in section.nearest for line in tokens]
        print_table(
            console, f"fragility of {section.title}", columns,
            [(name, *(cell or NONE for cell in cells), over or NONE) for name, _, over, cells in rows], lines,
        )  # fmt: skip
    given = f", wordings of {record['paraphrases']}" if record["paraphrases"] else ""
    console.print(
        f"\nIntervals at {record['confidence']:.0%}; derivatives of the mean loss of the first "
        f"{record['loss_items']} of {record['test_items']} test items, in bits a reply{given}.",
        markup=False, highlight=False,
    )  # fmt: skip
