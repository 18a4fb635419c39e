"""A solution that is found again costs what the run says it costs: the same model, edit and place."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from commands import small_run
from leadline import solution as solutions
from leadline.engine import Engine
from leadline.result import Result
from leadline.spec import UserError
from leadline.trial import reply

FAMILIES = ("soft_prompt", "steering", "prefix", "lora")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs") / "run", family=",".join(FAMILIES))


def cost_bits(solution: solutions.Solution, engine: Engine, contexts) -> float:
    edit = solution.edit.select([0] * len(contexts))
    return float(engine.target_logits(contexts, edit).nats().mean()) / math.log(2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_solution_costs_what_the_run_says(finished, family):
    found = solutions.find(finished, family=family)
    (row,) = Result.load(finished).points.filter(
        family=family, role="behaviour", split="test", chosen=True, estimator="", size=1
    ).to_dicts()  # fmt: skip
    items = found.contexts[:4]  # test items come first
    assert cost_bits(found, found.engine(), items) == pytest.approx(row["loss_bits"], rel=1e-5)
    if family == "prefix":  # in front of everything it is another intervention
        assert len(found.shared) > 0
        assert cost_bits(found, Engine(found.model), items) != pytest.approx(row["loss_bits"], rel=1e-4)


def test_the_family_is_one_of_the_run(finished):
    assert solutions.find(finished).family == "soft_prompt"
    with pytest.raises(
        UserError, match=r"family tinylora \(--family\)\. Choose one of soft_prompt, steering, prefix, lora"
    ):
        solutions.find(finished, family="tinylora")


def test_a_size_that_reached_goes_before_another_family_of_that_size(finished, monkeypatch):
    inner = Result.load

    def load(folder: Path) -> Result:
        found = inner(folder)
        rows = [
            {**r, "outcome": "reached" if r["family"] == "lora" else "out of steps"} for r in found.points.to_dicts()
        ]
        return Result(type(found.points)(rows, schema=found.points.schema), found.spec)

    monkeypatch.setattr(Result, "load", load)
    assert solutions.find(finished).family == "lora"
    assert solutions.find(finished, size=1).family == "lora"
    assert reply(finished, "Hello", tokens=2).what == "lora of size 1"


def test_a_prefix_is_not_put_behind_another_beginning(finished):
    found = solutions.find(finished, family="prefix")
    stolen = solutions.Solution(
        found.model, found.behaviour.model_copy(update={"format": "raw"}), found.family, 1, found.key, found.edit,
        found.contexts,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"and this does not \(text\)\. Begin the text as they do"):
        stolen.context("Hello")


def test_lost_items_are_damage(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "items.json").unlink()
    with pytest.raises(UserError, match=r"damaged \(.*items.json\)"):
        solutions.find(run)
