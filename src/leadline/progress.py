"""What a user sees while a run goes on: stages, rows done, time left. Knows nothing of what is run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Reporter:
    """The silent reporter, and what every reporter is told."""

    def stage(self, what: str) -> None:
        """A new part of the run begins."""

    def progress(self, done: float, total: float, detail: str = "") -> None:
        """So much of the stage is done."""

    def scored(self, score: float) -> None:
        """A trained cell of the behaviour has this validation score."""

    def recorded(self, points: Sequence[Mapping[str, Any]], done: int) -> None:
        """A record is finished: its rows of points.parquet, and how many records the run then has."""

    def note(self, text: str) -> None:
        """A line worth keeping."""

    def close(self) -> None:
        """The run ended, well or not."""


EVERY_SECONDS = 15.0


@final
class RichReporter(Reporter):
    """A progress bar on a terminal; elsewhere a line a stage and at most one every 15 seconds. Both say the time left
    in the stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._what = ""
        self._begun = self._said = 0.0
        self._first: float | None = None
        self._best: float | None = None
        if console.is_terminal:
            columns = (TextColumn(" "), BarColumn(bar_width=20), TextColumn("{task.description}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
            self._bar.start()

    def stage(self, what: str) -> None:
        self._what, self._first = what, None
        self._begun = self._said = time.monotonic()
        self.note(what)
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.update(task, visible=False)
            self._bar.add_task("", total=None)

    def scored(self, score: float) -> None:
        self._best = score if self._best is None else max(self._best, score)

    def progress(self, done: float, total: float, detail: str = "") -> None:
        now = time.monotonic()
        if self._best is not None:
            detail = f"{detail}, best score {self._best:.2f}"
        if self._bar is not None:
            for task in self._bar.task_ids[-1:]:
                self._bar.update(task, completed=done, total=total, description=detail.replace("[", "("))
            return
        if self._first is None:
            self._first, self._begun = done, now
        if now - self._said > EVERY_SECONDS:
            self._said = now
            share = f"{done / total:.0%}" if total <= 1 else f"{done:g} of {total:g}"
            line = f"  {self._what}: {share}{left(now - self._begun, done - self._first, total - done)}  {detail}"
            self._console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def left(seconds: float, done: float, rest: float) -> str:
    """The time left in words, where `done` took so many seconds; nothing while that cannot be said."""
    if done <= 0:
        return ""
    minutes, over = divmod(round(seconds * rest / done), 60)
    return f", {minutes} min {over} s left" if minutes else f", {over} s left"
