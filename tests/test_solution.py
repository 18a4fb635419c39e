"""A solution that is found again costs what the run says it costs: the same model, edit and place."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from commands import call, refused, small_run
from leadline import solution as solutions
from leadline.engine import Engine
from leadline.integrations import NOTE
from leadline.integrations.prompt_embeds import assemble
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


def test_lost_items_are_said(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "items.json").unlink()
    with pytest.raises(UserError, match=r"without one of its records \(.*items.json\)"):
        solutions.find(run)


# The command


def test_export_writes_a_folder_and_prints_its_path(capsys, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    code, out, _ = call(capsys, "export", run, "--format", "prompt-embeds")
    folder = run / "export" / "prompt-embeds-soft_prompt-1"
    assert (code, out.strip()) == (0, str(folder))
    found = solutions.find(run)
    context = found.context("What is this?")
    embeds = assemble(folder, found.model, "What is this?")
    assert len(embeds) == len(context.before) + 1 + len(context.after)
    assert torch.equal(embeds[len(context.before)], found.edit.values[0, 0])
    assert json.loads((folder / NOTE).read_text())["model"] == "organism:random"
    assert "There is something already" in refused(capsys, "export", run, "--format", "prompt-embeds")
    code, out, _ = call(
        capsys, "export", run, "--format", "peft", "--family", "lora", "--out", tmp_path / "new" / "lora"
    )
    assert (code, out.strip()) == (0, str(tmp_path / "new" / "lora"))
    assert {"adapter_config.json", "adapter_model.safetensors", NOTE} < {p.name for p in Path(out.strip()).iterdir()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--format", "peft"],
            r"stands behind 2 tokens: .* \(--format peft, slot before_user\)\. Measure a behaviour with",
        ),
        (["--format", "peft", "--family", "steering"], r"PEFT has no format for steering \(--format peft\)"),
        (["--format", "vocab-rows", "--family", "prefix"], r"Prefix is no input embeddings \(--format vocab-rows\)"),
        (["--format", "gguf"], r"gguf.*--format.*\(command line\)"),
        (["--format", "peft", "--size", "3"], r"no solution of size 3 \(--size\)"),
        ([], r"--format.*\(command line\)"),
    ],
)
def test_export_refuses_in_one_message(capsys, finished, arguments, said):
    assert re.search(said, refused(capsys, "export", finished, *arguments))
    assert not (finished / "export").is_dir() or not list((finished / "export").iterdir())


def test_nothing_is_written_where_something_is(capsys, finished, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file"):
        assert "There is something already" in refused(capsys, "export", finished, "--format", "peft", "--out", place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    call(capsys, "export", finished, "--format", "vocab-rows", "--out", tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()
