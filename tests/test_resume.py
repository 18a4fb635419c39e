"""A run that is killed, stopped, or has no room to write goes on with the same command and ends in the same numbers;
two processes never work on one run. All through the real command line, in processes of their own."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from commands import finish, message, refused, run, start
from leadline import checkpoint, cli, plan
from leadline.records import open_run, read_arrays

# Run before each command: a short budget, a checkpoint after every step, a line in the log for every step of training
# and every batch of draws that was computed, and what happens after the n-th call of one function.
DRIVER = """
import atexit, json, os, resource, signal, time
from pathlib import Path
from leadline import checkpoint, plan, records

plan.BUDGETS["ci"] = plan.Budget(6, 8, 4, 2, 4, 1, 4, 512)
checkpoint.EVERY_SECONDS = checkpoint.WRITING_TIMES = 0.0
log = Path({log!r})

def noted(inner):
    def call(self, state, *arguments, **named):
        result = inner(self, state, *arguments, **named)
        if not named.get("now"):
            done = state.step if hasattr(state, "step") else int((~state.isnan()).any(0).sum())
            with log.open("a") as file:
                print(json.dumps([self.name, done]), file=file)
        return result
    return call

def after(owner, name, number, act):
    inner, calls = getattr(owner, name), []
    def call(*arguments, **named):
        result = inner(*arguments, **named)
        calls.append(None)
        if len(calls) == number:
            act()
        return result
    setattr(owner, name, call)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def fill_the_disk():
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    # lifted at the end: what counts coverage in this process writes its file then
    atexit.register(resource.setrlimit, resource.RLIMIT_FSIZE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))

def wait():
    log.with_suffix(".here").touch()
    while not log.with_suffix(".go").exists():
        time.sleep(0.02)

checkpoint.Checkpoint.training = noted(checkpoint.Checkpoint.training)
checkpoint.Checkpoint.margins = noted(checkpoint.Checkpoint.margins)
{moment}
"""
# What each process is killed after; the first begins the run, the others go on from where it was.
MOMENTS = {
    "items written, spec not": 'after(records.Run, "write_json", 1, kill)',
    "half of the second record written": 'after(os, "fsync", 3, kill)',
    "in a training batch": 'after(checkpoint.Checkpoint, "training", 3, kill)',
    "again in the same batch": 'after(checkpoint.Checkpoint, "training", 2, kill)',
    "one of two cells written": 'after(records.Run, "write_cell", 1, kill)',
    "in a batch that goes on from cells": 'after(checkpoint.Checkpoint, "training", 13, kill)',
    "among draws": 'after(checkpoint.Checkpoint, "margins", 3, kill)',
    "nearly done": 'after(records.Run, "write_points", 1, kill)',
}


class Command:
    """One measurement as a command, and where it leaves things."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.run, self.log = folder / "run", folder / "log.jsonl"
        self.arguments = ["measure", "--model", model, "--scale", "ci", "--sizes", "1", "--items", "10",
                          "--controls", "1", "--draws", "64", "--prior-draws", "64", "--out", self.run]  # fmt: skip

    def code(self, moment: str = "") -> str:
        return DRIVER.format(log=str(self.log), moment=moment)

    @contextmanager
    def driven(self) -> Iterator[None]:
        """What the driver does, in this process, which has imported torch already."""
        with pytest.MonkeyPatch.context() as patch:  # puts back what it finds here
            patch.setitem(plan.BUDGETS, "ci", plan.BUDGETS["ci"])
            for name in ("EVERY_SECONDS", "WRITING_TIMES"):
                patch.setattr(checkpoint, name, getattr(checkpoint, name))
            for name in ("training", "margins"):
                patch.setattr(checkpoint.Checkpoint, name, getattr(checkpoint.Checkpoint, name))
            exec(self.code(), {})
            yield

    def to_its_end(self) -> None:
        """The command in this process."""
        with self.driven(), pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in self.arguments])
        assert not ended.value.code

    def steps(self) -> Counter[tuple[str, int]]:
        """How often each step of training and each batch of draws was computed."""
        return Counter(tuple(json.loads(line)) for line in self.log.read_text().splitlines())

    def files(self) -> dict[str, object]:
        """What the run directory holds, by path, as far as it must come out the same."""
        found: dict[str, object] = {}
        for path in filter(Path.is_file, sorted(self.run.rglob("*"))):
            name = path.relative_to(self.run).as_posix()
            if path.suffix == ".safetensors":
                found[name] = {label: array.tobytes() for label, array in read_arrays(path)[0].items()}
            elif path.name == "points.parquet":
                found[name] = pl.read_parquet(path).drop("wall_seconds").write_json()
            elif path.name in ("record.json", "items.json"):
                found[name] = re.sub(r'"(wall_seconds|seal)": [^,\n]*', "", path.read_text())
            else:
                found[name] = path.read_bytes() if path.suffix == ".parquet" else None
        return found

    def keys(self) -> Counter[str]:
        """How often each cell was finished, as events.jsonl tells it."""
        events = [json.loads(line) for line in (self.run / "events.jsonl").read_text().splitlines()]
        return Counter(event["key"] for event in events if event["event"] == "cell")


@pytest.fixture(scope="module")
def whole(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The run that nothing stopped."""
    command = Command(tiny_model_folder, tmp_path_factory.mktemp("whole"))
    command.to_its_end()
    assert max(command.steps().values()) == max(command.keys().values()) == 1
    return command


@pytest.fixture(scope="module")
def killed(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The run killed in its first training batch."""
    command = Command(tiny_model_folder, tmp_path_factory.mktemp("killed"))
    code, _, said = run(*command.arguments, code=command.code('after(checkpoint.Checkpoint, "training", 3, kill)'))
    assert code == -signal.SIGKILL, said
    return command


@pytest.fixture
def begun(killed: Command, tiny_model_folder: Path, tmp_path: Path) -> Command:
    """A copy of the killed run to go on with."""
    shutil.copytree(killed.run.parent, tmp_path / "begun")
    return Command(tiny_model_folder, tmp_path / "begun")


def same(one: Command, other: Command) -> None:
    """Both ended in the same numbers and files; nothing was done twice and nothing is left over."""
    left, right = one.files(), other.files()
    assert left.keys() == right.keys(), "no temporary files, no checkpoints"
    for name in left:
        assert left[name] == right[name], name
    assert max(other.keys().values()) == 1, "no cell is done twice"
    assert set(other.keys()) <= set(one.keys())
    # A kill comes after a checkpoint, and what a checkpoint holds is not computed again.
    assert other.steps() == one.steps(), "each step of training and each batch of draws was computed once"


def test_killed_at_any_moment_it_ends_in_the_same_numbers(whole, tiny_model_folder, tmp_path):
    command = Command(tiny_model_folder, tmp_path)
    for moment, patch in MOMENTS.items():
        code, _, said = run(*command.arguments, code=command.code(patch))
        assert code == -signal.SIGKILL, f"{moment}: {said}"
    command.to_its_end()
    same(whole, command)


def test_two_processes_do_not_work_on_one_run(whole, begun, capsys):
    here, go = begun.log.with_suffix(".here"), begun.log.with_suffix(".go")
    first = start(*begun.arguments, code=begun.code('after(records.Run, "write_cell", 2, wait)'))
    try:
        wait_for(here)
        said = refused(capsys, *begun.arguments)
        assert f"Another process is working on this run ({begun.run})" in said
        assert "Starting torch" not in said, "said at once"
    finally:
        go.touch()
        code, _, told = finish(first)
    assert code == 0, told
    same(whole, begun)
    begun.to_its_end()
    assert "This run is finished" in capsys.readouterr().err
    same(whole, begun)


def test_a_full_disk_ends_with_one_message_and_can_go_on(whole, tiny_model_folder, tmp_path):
    command = Command(tiny_model_folder, tmp_path)
    for moment in [
        'after(records.Run, "write_json", 1, fill_the_disk)',  # the spec does not fit
        'after(records.Run, "write_cell", 1, fill_the_disk)',  # the event of a finished cell does not fit
        'after(checkpoint.Checkpoint, "training", 4, fill_the_disk)',  # a checkpoint does not fit
    ]:
        code, _, said = run(*command.arguments, code=command.code(moment))
        assert code == 1, said
        assert re.search(rf"could not be written or read: .* \({command.run}/\S+\)\. Make room", message(said))
        assert not list(command.run.rglob(".*.partial"))
        if (command.run / "events.jsonl").exists():
            assert all(json.loads(line) for line in (command.run / "events.jsonl").read_text().splitlines())
    command.to_its_end()
    left, right = whole.files(), command.files()
    assert left == right
    assert max(command.keys().values()) == 1


def test_ctrl_c_ends_with_one_message_and_can_go_on(whole, begun):
    process = start(*begun.arguments, code=begun.code('after(records.Run, "write_cell", 2, wait)'))
    wait_for(begun.log.with_suffix(".here"))
    process.send_signal(signal.SIGINT)
    code, _, said = finish(process)
    assert code == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "leadline: Stopped. The same command continues where it was."
    begun.to_its_end()
    same(whole, begun)


def test_a_damaged_checkpoint_is_refused_and_made_again(whole, begun, capsys):
    path = next(begun.run.glob("batches/*/checkpoint.safetensors"))
    data = path.read_bytes()
    for damage in (data[:-1] + bytes([data[-1] ^ 1]), data[:100], b""):
        path.write_bytes(damage)
        with begun.driven():
            said = refused(capsys, *begun.arguments)
        assert f"This record is damaged ({path}). Delete the folder {path.parent};" in said
    shutil.rmtree(path.parent)
    begun.to_its_end()
    assert whole.files() == begun.files()


def test_a_run_goes_on_with_the_compute_it_began_with(begun, monkeypatch):
    """What a probe would say now has no say: another dtype would be another model."""
    spec = json.loads((begun.run / "spec.json").read_text())["provenance"]
    asked = []
    monkeypatch.setattr("leadline.model.load", lambda name, compute, **named: asked.append(compute) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main([str(argument) for argument in begun.arguments])
    assert (asked[0].dtype, asked[0].attention, asked[0].threads) == (spec["dtype"], spec["attention"], spec["threads"])


def test_a_half_written_event_is_dropped(begun):
    events = begun.run / "events.jsonl"
    whole_lines = events.read_text()
    events.write_text(whole_lines + '{"time": "20')
    open_run(begun.run).close()
    assert events.read_text() == whole_lines


def wait_for(path: Path) -> None:
    begin = time.monotonic()
    while not path.exists():
        assert time.monotonic() - begin < 120
        time.sleep(0.02)
