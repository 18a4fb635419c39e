"""Checkpoints: what comes back, and when they are written. That a killed run ends alike is in test_resume.py."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from leadline import checkpoint
from leadline.checkpoint import Checkpoint
from leadline.progress import Reporter
from leadline.records import open_run
from leadline.solvers.base import State


class Told(Reporter):
    def __init__(self) -> None:
        self.lines: list[tuple[float, float, str]] = []

    def progress(self, done: float, total: float, detail: str = "") -> None:
        self.lines.append((done, total, detail))


@pytest.fixture
def run(tmp_path):
    opened = open_run(tmp_path / "run")
    yield opened
    opened.close()


def state() -> State:
    parameters = [{"mean": torch.randn(2, 3)}, {"mean": torch.randn(4), "log_scale": torch.full((4,), math.nan)}]
    first = [{name: torch.randn_like(value) for name, value in row.items()} for row in parameters]
    second = [{name: torch.rand_like(value) for name, value in row.items()} for row in parameters]
    parameters[0]["mean"].requires_grad_()
    return State(7, parameters, first, second, [-1, 3], [1 / 3, math.nan], [4, 0], [-1, 6])


def test_a_training_state_comes_back_bit_for_bit(run):
    before = state()
    Checkpoint(run, "hash", Reporter()).training(before, 10, now=True)
    after = Checkpoint(run, "hash", Reporter()).restore_training(torch.device("cpu"))
    for name in ("step", "lost", "losses", "calm", "settled"):
        assert repr(getattr(after, name)) == repr(getattr(before, name))
    for one, other in [
        (before.parameters, after.parameters),
        (before.first, after.first),
        (before.second, after.second),
    ]:
        assert [row.keys() for row in one] == [row.keys() for row in other]
        for left, right in zip(one, other, strict=True):
            for name in left:
                assert torch.equal(left[name].nan_to_num(9.0), right[name].nan_to_num(9.0))
                right[name].add_(1)  # memory of its own, that can be trained on


def test_margins_come_back_with_what_was_not_computed(run):
    margins = torch.tensor([[1.5, math.nan, math.nan], [-0.25, 2.0, math.nan]])
    Checkpoint(run, "hash", Reporter()).margins(margins, now=True)
    found = Checkpoint(run, "hash", Reporter()).restore_margins()
    assert found.numpy().tobytes() == margins.numpy().tobytes()


def test_nothing_was_stopped(run):
    new = Checkpoint(run, "hash", Reporter())
    assert new.restore_training(torch.device("cpu")) is None
    assert new.restore_margins() is None


def test_it_is_written_at_least_every_30_seconds_and_not_at_every_step(run, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    file = run.folder / "batches" / "hash" / "checkpoint.safetensors"
    training, written, stopped = Checkpoint(run, "hash", Reporter()), [], state()
    after_step = training.after_step(100)
    for second in range(1, 100):
        now[0] = float(second)
        after_step(stopped)
        if file.exists():
            written.append(second)
            file.unlink()
    assert written
    assert max(b - a for a, b in zip([0, *written], [*written, 99], strict=True)) <= 30
    assert min(b - a for a, b in zip([0, *written], written, strict=False)) >= 10


def test_one_that_takes_long_to_write_is_written_less_often(run, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])

    def slow(*_):
        written.append(now[0])
        now[0] += 3.0

    monkeypatch.setattr(run, "write_arrays", slow)
    training, stopped = Checkpoint(run, "hash", Reporter()), state()
    for _ in range(200):
        now[0] += 1.0
        training.training(stopped, 1000)
    assert len(written) > 2
    assert all(b - a >= 60 for a, b in pairwise(written)), "at most a twentieth of the time"


def test_seconds_are_counted_over_all_processes(run, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    first = Checkpoint(run, "hash", Reporter())
    now[0] = 105.0
    first.training(state(), 10, now=True)
    now[0] = 900.0  # it was killed, and a day passed
    second = Checkpoint(run, "hash", Reporter())
    second.restore_training(torch.device("cpu"))
    now[0] = 903.0
    assert second.seconds == pytest.approx(8.0)


def test_progress_says_the_best_loss_and_the_draws_left(run):
    told = Told()
    reporting = Checkpoint(run, "hash", told)
    reporting.training(state(), 10)
    reporting.margins(torch.tensor([[1.0, -1.0, math.nan], [-1.0, math.nan, math.nan]]))
    assert told.lines == [(7, 10, "best loss 0.333 bits"), (2, 3, "1 of 2 draws left")]
