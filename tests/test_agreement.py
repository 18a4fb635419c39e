"""Rank agreement of priors over behaviours, against orders counted by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from leadline.agreement import agreements
from leadline.report.scorecard import Scored, print_card
from leadline.result import NoDistance
from rows_by_hand import cond, null, result, spelled_out


def measured(**bits: float) -> Any:
    """What a finished run says of each family, in bits; inf: nothing reached it."""
    told = {f: SimpleNamespace(upper=None if b == math.inf else SimpleNamespace(value=b)) for f, b in bits.items()}
    return SimpleNamespace(families=tuple(bits), distance=lambda family: told[family])


def loss(family: str) -> Any:
    raise NoDistance("it has a loss")


def test_the_same_order_agrees_wholly_and_its_chance_is_counted():
    runs = [measured(soft_prompt=s, prefill=p) for s, p in [(10, 1), (20, 2), (30, 3), (40, 50)]]
    (found,) = agreements(runs)
    assert (found.first, found.second, found.behaviours) == ("soft_prompt", "prefill", 4)
    assert found.rho == pytest.approx(1)
    assert found.p == pytest.approx(1 / 24)


def test_one_swap_of_three_and_the_reverse():
    swapped = agreements([measured(a=s, b=p) for s, p in [(1, 1), (2, 3), (3, 2)]])
    assert swapped[0].rho == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)
    assert swapped[0].p == pytest.approx(3 / 6)
    (reverse,) = agreements([measured(a=s, b=-s) for s in range(4)])
    assert (reverse.rho, reverse.p) == (pytest.approx(-1), pytest.approx(1))


def test_only_what_was_measured_in_both_counts_and_points_are_no_priors():
    runs = [measured(a=s, b=s, null=0, best_of_n=s) for s in range(3)]
    runs += [measured(a=9), measured(a=math.inf, b=9), SimpleNamespace(families=("a", "b"), distance=loss)]
    (found,) = agreements(runs)
    assert found.behaviours == 3, "what nothing reached may lie anywhere"


@pytest.mark.parametrize(
    "pairs", [[(1, 1), (2, 2)], [(math.inf, 1), (math.inf, 2), (math.inf, 3)], [(5, 1), (5, 2), (5, 3)]]
)
def test_nothing_is_said_of_two_behaviours_nor_where_a_family_tells_none_apart(pairs):
    assert agreements([measured(a=s, b=p) for s, p in pairs]) == []


def test_the_score_card_says_it_of_the_runs_of_one_model():
    runs = [result([null(0.0), *cond(1, bits, bits), spelled_out(cost)]) for bits, cost in [(50, 9), (60, 7), (70, 12)]]
    console = Console(width=80, record=True)
    print_card([Scored("m", f"b{number}", Path("x"), "measured", "", run) for number, run in enumerate(runs)], console)
    told = console.export_text().partition("ranks under two priors")[2].splitlines()
    assert told[1].split() == ["prior", "and", "prior", "rho", "p", "behaviours"]
    assert told[2].split() == ["soft_prompt", "prefill", "0.50", "0.5", "3"]
