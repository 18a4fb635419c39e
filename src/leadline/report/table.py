"""A run in the terminal: the headline, the distances, the controls, the size curve, and where the page is.

Plain characters, 80 columns, and nothing that needs colour to be understood. Knows nothing of files.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from leadline.information import at_least, at_most
from leadline.report.columns import show
from leadline.report.headline import controls_of, distance_of, headline, subjects
from leadline.report.rows import EPSILON, bound_rows, cost_words, luck_words, size_rows
from leadline.report.ways import cheapest_words, message_lines, text_lines
from leadline.report.words import NONE, about, bound_notes, interval, plain, short
from leadline.result import Result
from leadline.sentences import rank_words


def print_result(result: Result, console: Console, page: Path | None = None) -> None:
    """Print a run. page: the HTML file to point to, if one was written."""
    head = headline(result)
    console.print()
    console.print(Text(head.sentence, style="bold"))
    for note in head.notes:
        console.print(Padding(Text(plain(note), style="dim"), (0, 0, 0, 2)))
    _distances(result, console)
    _controls(result, console)
    _sizes(result, console)
    console.print()
    for line in (*(luck_words(result) if head.state != "curves only" else ()), f"Cost: {cost_words(result.points)}."):
        console.print(Text(line, style="dim"))
    if page is not None:
        console.print()
        console.print(Text(f"page: {plain(page)}"), soft_wrap=True)


def _table(title: str, columns: dict[str, JustifyMethod]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0),
        header_style="dim",
    )  # fmt: skip
    for name, justify in columns.items():
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")
    return table


def _distances(result: Result, console: Console) -> None:
    rows = bound_rows(result)
    if not rows:
        return
    # priors are sentences: they stand below the table, under a letter each
    letters = {prior: chr(ord("a") + place) for place, prior in enumerate(dict.fromkeys(row.prior for row in rows))}
    table = _table(
        "distance, bits",
        {"family": "left", "size": "right", "at most": "right", "its 95%": "left", "at least": "right",
         "kind": "left", "estimator": "left", "prior": "left"},
    )  # fmt: skip
    for row in rows:
        # the columns say which side; the kind needs only say how sure
        kind = "/".join(dict.fromkeys(part.split()[0] for part in row.kind.split(" / ")))
        cells = (
            row.family,
            row.size,
            row.upper,
            _dots(row.interval),
            row.lower,
            kind,
            row.estimator,
            letters[row.prior],
        )
        table.add_row(*(Text(plain(cell)) for cell in cells))
    cheapest = [cheapest_words(result)] if len(result.curves) > 1 else []
    show(
        console,
        table,
        [
            *bound_notes(row.upper for row in rows),
            *cheapest,
            *text_lines(result),
            *message_lines(result),
            *(f"{letter}  {plain(prior)}" for prior, letter in letters.items()),
        ],
    )


def _controls(result: Result, console: Console) -> None:
    found, (distance, _) = subjects(result)[1:], distance_of(result)
    if not controls_of(result) or distance is None:
        return
    table = _table(
        "controls, bits",
        {"control": "left", "size": "right", "at most": "right", "at least": "right", "Delta": "right", "95%": "left",
         "direct": "right", "text": "left"},
    )  # fmt: skip
    for one in found:
        cells = (
            short(one.name, 12) if one.is_control else "behaviour", str(one.size or ""),
            at_most(one.upper) if one.upper is not None else one.unbounded,
            at_least(one.lower) if one.lower is not None else NONE, about(one.excess.value) if one.excess else NONE,
            _dots(interval(one.excess)), about(one.direct_bits), short(one.target, 12),
        )  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells))
    words = "Delta: how much farther the control lies, by the same bound at the same size. direct: to spell it out."
    rank = f"Rank of the behaviour: {rank_words(distance)}." if distance.rank else ""
    show(console, table, [words, *([rank] if rank else [])])


def _sizes(result: Result, console: Console) -> None:
    every = size_rows(result)
    unicode = console.encoding.lower().startswith("utf")
    for family, curve in result.curves.items():
        rows = [row for row in every if row.family == family]
        if not rows:
            continue
        table = _table(
            f"{family} by size, held-out items, loss in bits a reply",
            {"size": "right", "score": "right", "95%": "left", "": "left", "loss": "right", "saved* ": "left",
             "restarts**": "left", "outcome": "left"},
        )  # fmt: skip
        for row in rows:
            cells = (
                str(row.size), row.score, _dots(row.score_interval), _bar(row.height, unicode), row.loss,
                _dots(row.gain_interval), row.restarts.replace(" ", ""), row.outcome,
            )  # fmt: skip
            table.add_row(*(Text(cell) for cell in cells))
        lines = [
            "* bits fewer than size 0, paired item by item: 95% interval of the mean",
            "** least/median/largest score over restarts, on validation items",
        ]
        if any(row.height is not None for row in rows):
            capacity, saturation = curve.capacity(result.threshold), curve.saturation(EPSILON)
            lines.append(
                f"C({result.threshold:g}), the smallest size whose chosen restart reaches it: {_size(capacity)}; "
                f"S({EPSILON:g}), after which doubling adds less: {_size(saturation)}"
            )
        show(console, table, lines)


def _size(size: int | None) -> str:
    return "none of these" if size is None else str(size)


def _dots(interval: str) -> str:
    return interval.replace(" to ", "..")


def _bar(share: float | None, unicode: bool, width: int = 8) -> str:
    """A score as a bar of `width` characters; whole `#` where the terminal has no blocks."""
    if share is None:
        return ""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    if not unicode:
        return "#" * (eighths // 8)
    whole, part = divmod(eighths, 8)
    left = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"
    return "\u2588" * whole + (left[part] if part else "")
