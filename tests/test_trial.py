"""`leadline try`: the solution that is taken, and the two replies."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from commands import call, small_run
from leadline.result import Result
from leadline.spec import UserError
from leadline.trial import reply


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs") / "run", sizes="1,2")


def reached(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
    """The run as if these sizes had reached the threshold."""
    inner = Result.load

    def load(folder: Path) -> Result:
        found = inner(folder)
        rows = [
            {**row, "outcome": "reached" if row["size"] in sizes else "out of steps"} for row in found.points.to_dicts()
        ]
        return Result(type(found.points)(rows, schema=found.points.schema), found.spec)

    monkeypatch.setattr(Result, "load", load)


@pytest.mark.parametrize(("sizes", "taken"), [((), 2), ((1, 2), 1), ((2,), 2)])
def test_the_smallest_size_that_reached_is_taken_else_the_largest(finished, monkeypatch, sizes, taken):
    reached(monkeypatch, *sizes)
    assert reply(finished, "Hello", tokens=2).what == f"soft_prompt of size {taken}"


def test_a_solution_that_missed_the_threshold_and_a_run_that_goes_on_are_said(capsys, finished, tmp_path, monkeypatch):
    code, _, said = call(capsys, "try", finished, "Hello", "--tokens", 2)
    assert code == 0
    last = said.splitlines()[-1]  # before it transformers may have told of weights
    assert re.fullmatch(r"soft_prompt of size 2 scores 0\.\d\d on test items, below the threshold of 0\.9\.", last)
    run = shutil.copytree(finished, tmp_path / "run")
    spec = json.loads((run / "spec.json").read_text())
    del spec["seal"], spec["finished"]
    (run / "spec.json").write_text(json.dumps(spec))
    _, _, said = call(capsys, "export", run, "--format", "prompt-embeds", "--out", tmp_path / "out")
    assert "below the threshold of 0.9. This run is not finished, and another solution" in said
    assert json.loads((tmp_path / "out" / "leadline.json").read_text())["shortfall"] == said.splitlines()[-1]
    reached(monkeypatch, 1)
    assert reply(finished, "Hello", tokens=2).shortfall == ""


def test_a_size_may_be_named(finished):
    assert reply(finished, "Hello", size=1, tokens=2).what == "soft_prompt of size 1"
    with pytest.raises(UserError, match=r"no solution of size 3 \(--size\)\. Choose one of \[1, 2\]"):
        reply(finished, "Hello", size=3)


def test_replies_are_greedy_and_as_long_as_asked(finished):
    one, two = reply(finished, "Hello", tokens=4), reply(finished, "Hello", tokens=4)
    assert one == two
    assert len(one.without.encode()) <= 4 * 4


@pytest.mark.parametrize("missing", ["behaviour_spec", "provenance"])
def test_a_spec_without_its_parts_is_damaged(finished, tmp_path, missing):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    spec = json.loads((run / "spec.json").read_text())
    del spec["seal"]  # changed by hand
    del spec[missing]
    (run / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match=r"damaged \(.*spec.json\)"):
        reply(run, "Hello")


def test_other_weights_are_refused(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    spec = json.loads((run / "spec.json").read_text())
    del spec["seal"]  # changed by hand
    spec["provenance"]["model_hash"] = "0" * 64
    (run / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="not those of the run"):
        reply(run, "Hello")


def test_a_run_without_a_solution_yet(finished, tmp_path, monkeypatch):
    inner = Result.load
    monkeypatch.setattr(Result, "load", lambda folder: Result(inner(folder).points.filter(size=0), {}))
    with pytest.raises(UserError, match="no trained solution yet"):
        reply(finished, "Hello")
