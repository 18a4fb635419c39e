"""Tables in the terminal: plain columns that are never cut, lines below them.

Knows nothing of what stands in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from leadline.report.words import plain

WIDEST = 1000


def print_table(
    console: Console, title: str, columns: Mapping[str, JustifyMethod], rows: Sequence[Sequence[str]],
    lines: Sequence[str] = (),
) -> None:  # fmt: skip
    """Print a table and the lines below it. columns: heading and which side it is set to"""
    table = Table(
        title=plain(title), title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0),
        header_style="dim",
    )  # fmt: skip
    for name, justify in columns.items():
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    show(console, table, lines)


def show(console: Console, table: Table, lines: Sequence[str] = ()) -> None:
    """Print a table whole, and the lines below it: a terminal that is too narrow folds it, for a number that is cut is
    another number."""
    needed = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    if needed > console.width:
        table.width = needed
    console.print()
    console.print(table, crop=False)
    print_lines(console, lines)


def print_lines(console: Console, lines: Sequence[str]) -> None:
    """Print what has to be said of what stands above."""
    for line in lines:
        console.print(Padding(Text(plain(line), style="dim"), (0, 0, 0, 2)))


def dots(interval: str) -> str:
    """An interval in as little room as it takes."""
    return interval.replace(" to ", "..")
