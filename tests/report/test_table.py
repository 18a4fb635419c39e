"""The terminal shows the same numbers as the page, in 80 columns and without colour."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from leadline.report import print_result
from leadline.result import Result

PlantRun = Callable[..., Path]


def printed(run: Path, page: Path | None = None, encoding: str = "utf-8", width: int = 80) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    print_result(Result.load(run), Console(file=file, width=width, color_system=None), page)
    file.flush()
    return raw.getvalue().decode(encoding)


VARIANTS: tuple[dict[str, Any], ...] = (
    {}, {"reached": False}, {"variational": False, "monte_carlo": False, "controls": ()}, {"diverged": True},
    {"kind": "loss", "target": None, "controls": ()}, {"hostile": True, "target": "\x1b[2J[bold]x[/bold]\u202e" * 9},
)  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS)
def test_fits_80_columns_and_sends_no_control_characters(plant_run: PlantRun, changes: dict[str, Any]) -> None:
    text = printed(plant_run(**changes))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_narrow_terminal_cuts_no_number(plant_run: PlantRun) -> None:
    wide, narrow = (printed(plant_run(str(width)), width=width) for width in (80, 40))
    assert "\u2026" not in narrow
    assert {word for word in wide.split() if word[0].isdigit()} <= set(narrow.split())


def test_says_everything_that_matters(plant_run: PlantRun) -> None:
    text = printed(plant_run(), Path("runs/some/report.html"))
    lines = {line.split()[0]: line.split() for line in reversed(text.splitlines()) if line.strip()}
    assert lines["soft_prompt"][:6] == ["soft_prompt", "1", "132", "126..131", "7.1", "certified"]
    assert lines["prefill"][:2] == ["prefill", "34.7"]
    assert lines["null"][:2] == ["null", "unreached"]
    assert "uniform-0    1     190        -  59.0 55.6..62.4   95.0" in text
    assert "Confirmation: 94% of 64 hits" in text
    assert "Cost: " in text
    assert "Rank of the behaviour: 1 of 3." in text
    assert "N(mu, sigma^2) of the vocabulary, per dimension; sizes 1, 4 weighted" in text
    assert "C(0.9), the smallest size whose chosen restart reaches it: 1" in text
    assert text.rstrip().endswith("page: runs/some/report.html")


def test_size_zero_stands_beside_the_other_sizes(plant_run: PlantRun) -> None:
    rows = [line.split() for line in printed(plant_run()).splitlines() if line.split()[:1] in (["0"], ["1"], ["4"])]
    assert [row[:3] for row in rows] == [
        ["0", "0.00", "0.00..0.07"], ["1", "0.95", "0.85..0.99"], ["4", "0.95", "0.85..0.99"],
    ]  # fmt: skip
    assert "\u2588" * 7 in "".join(rows[1])


def test_a_terminal_without_blocks_gets_ascii(plant_run: PlantRun) -> None:
    text = printed(plant_run(), encoding="ascii")  # an ellipsis of a cut column would not even print
    assert "#######" in text


def test_markup_in_a_target_is_text(plant_run: PlantRun) -> None:
    assert "'[bold]x[/bold]'" in printed(plant_run(target="[bold]x[/bold]"))
