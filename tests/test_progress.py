"""What is shown while a run goes on, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from leadline import progress
from leadline.progress import Reporter, RichReporter, left


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_a_stage_and_one_every_15_seconds(clock):
    text = io.StringIO()
    reporter = RichReporter(Console(file=text, width=80))
    reporter.note("Plan: [bold]not markup[/bold] " + "x" * 80)
    reporter.stage("training")
    for step in range(1, 41):
        clock[0] += 1
        reporter.progress(step, 100, f"best loss {step}")
    reporter.stage("making")
    clock[0] += 1
    reporter.progress(0.25, 1, "a model")
    clock[0] += 20
    reporter.progress(0.5, 1, "a model")
    reporter.close()
    assert text.getvalue().splitlines() == [
        "Plan: [bold]not markup[/bold] " + "x" * 80,
        "training",
        "  training: 16 of 100, 1 min 24 s left  best loss 16",
        "  training: 32 of 100, 1 min 8 s left  best loss 32",
        "making",
        "  making: 50%, 40 s left  a model",
    ]


def test_a_batch_that_goes_on_counts_only_what_it_did_itself(clock):
    text = io.StringIO()
    reporter = RichReporter(Console(file=text, width=80))
    reporter.stage("training")
    reporter.progress(90, 100)
    clock[0] += 16
    reporter.progress(91, 100)
    assert "2 min 24 s left" in text.getvalue(), "9 steps of 16 seconds, not a fraction of one"


def test_the_best_score_so_far_is_said(clock):
    text = io.StringIO()
    reporter = RichReporter(Console(file=text, width=80))
    reporter.stage("draws")
    for score in (0.25, 1.0, 0.5):
        reporter.scored(score)
    clock[0] += 20
    reporter.progress(1, 2, "3 of 4 draws left")
    assert text.getvalue().splitlines()[-1] == "  draws: 1 of 2  3 of 4 draws left, best score 1.00"


def test_on_a_terminal_a_bar(clock):
    text = io.StringIO()
    reporter = RichReporter(Console(file=text, width=100, force_terminal=True))
    reporter.progress(1, 2, "before any stage")
    reporter.stage("draws [1]")
    reporter.progress(1, 2, "half [bold]of it")
    reporter.note("a line worth keeping")
    reporter.stage("next")
    reporter.close()
    assert "\ndraws [1]\n" in text.getvalue().replace("\r", "\n").replace("\x1b[2K", "")
    assert "before any stage" not in text.getvalue()
    assert "a line worth keeping" in text.getvalue()


def test_the_silent_reporter_is_silent(capsys):
    reporter = Reporter()
    reporter.stage("a")
    reporter.progress(1, 2, "b")
    reporter.scored(0.5)
    reporter.note("c")
    reporter.close()
    assert capsys.readouterr() == ("", "")


def test_time_left():
    assert left(10, 5, 10) == ", 20 s left"
    assert left(10, 5, 60) == ", 2 min 0 s left"
    assert left(10, 0, 60) == ""
