"""What benchmarks make of their seconds, against sums by hand; what their README says, against their records."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
README = (BENCHMARKS / "README.md").read_text()
LOOPS = ("peft float32", "peft bfloat16", "unfrozen float32")


@pytest.fixture
def speed(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("speed")


def step(seconds: float) -> dict[str, Any]:
    return {"seconds": {"median": seconds}}


def test_a_curve_is_extrapolated_by_its_two_ends(speed):
    """Sizes 1, 2 and 3, a look every 10 of 30 steps. Size 1 has its goal after 10 and after 20 steps of 2 s, 15 by the
    mean, size 3 never, in 30 of 4 s; size 2 between them takes 22.5 of 3 s; a control takes 30 of 2 s. Three restarts
    of each."""
    run: dict[int, dict[str, Any]] = {
        1: {
            "curves": [[(20, 0.9), (40, 0.5), (60, 0.1)], [(20, 1.9), (40, 0.5), (60, 0.1)]],
            "seconds_to_goal": [20, 40],
        },
        3: {"curves": [[(40, 0.9), (80, 0.5), (120, 0.1)]], "seconds_to_goal": [None]},
    }
    loop = {"step": {1: step(2.0), 3: step(4.0)}, "run": run}
    found = speed.extrapolated(loop, (1, 2, 3), 30, {1: 1.0, 3: 0.05})
    assert found == {"seconds": 3 * (15 * 2 + 22.5 * 3 + 30 * 4 + 30 * 2), "extrapolated": True, "at_least": True}
    assert speed.all_steps(loop, (1, 2, 3), 30) == 3 * 30 * (2 + 3 + 4 + 2)
    assert speed._seconds_to([(1.0, 3.0), (2.0, 1.0), (3.0, 0.5)], 1.0) == 2.0
    assert speed._seconds_to([(1.0, 3.0)], 1.0) is None
    assert (speed.middle([None, 2.0, 1.0]), speed.middle([None, 2.0, None])) == (2.0, None)


def test_growth_has_the_exponent_of_a_power_law(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    growth = importlib.import_module("growth")
    points = [{"x": x, "seconds": 0.5 * x**1.5} for x in (1, 2, 4, 8)]
    assert growth.exponent(points) == pytest.approx(1.5)


@pytest.mark.parametrize("name", ["speed", "speed_tiny"])
def test_the_tables_beside_peft_are_those_of_the_records(speed, name):
    found = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    ours, ends = found["leadline"], list(found["goals"])
    table = README[README.index(f"`results/{name}.json`):") :].split("\n\n")[1].splitlines()[2:]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    curve = ours["curve"]
    assert curve["at_least"] == any(not row["reached"] for row in curve["rows"] if not row["task"])
    assert lines[0][5] == f"at least {three(curve['seconds'])}"
    assert lines[0][6] == three(curve["seconds_with_all_steps"])
    assert lines[0][7].endswith(f"curve {curve['peak_gigabytes']:.2f}")
    for line, loop in zip(lines[1:], (found[name] for name in LOOPS), strict=True):
        for cell, size in zip(line[1:3], ends, strict=True):
            seconds, least = (one["step"][size]["seconds"]["median"] for one in (loop, ours))
            assert cell == f"{seconds:.3g}, {seconds / least:.1f} times"
        seconds, least = loop["curve"]["seconds"], "at least " * loop["curve"]["at_least"]
        assert line[5] == f"{least}{three(seconds)}, {seconds / curve['seconds']:.1f} times"
        assert line[6] == f"{least}{seconds / curve['seconds_with_all_steps']:.1f} times"


def three(value: float) -> str:
    """Three digits, thousands apart."""
    return f"{round(value, 2 - math.floor(math.log10(value))):,g}"
