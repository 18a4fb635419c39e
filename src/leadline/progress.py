"""What a user sees while a run goes on: stages, rows done, time left. Knows nothing of what is run."""

from __future__ import annotations

import time
from typing import final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Reporter:
    """The silent reporter, and what every reporter is told."""

    def stage(self, what: str) -> None:
        """A new part of the run begins."""

    def progress(self, done: float, total: float, detail: str = "") -> None:
        """So much of the stage is done."""

    def note(self, text: str) -> None:
        """A line worth keeping."""

    def close(self) -> None:
        """The run ended, well or not."""


@final
class RichReporter(Reporter):
    """A progress bar on a terminal; elsewhere a line a stage and at most one every 15 seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._said = 0.0
        self._what = ""
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[detail]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
            self._bar.start()

    def stage(self, what: str) -> None:
        self._what, self._said = what, time.monotonic()
        if self._bar is None:
            self._console.print(what, highlight=False, markup=False)
            return
        for task in self._bar.task_ids:
            self._bar.update(task, visible=False)
        self._bar.add_task(what.replace("[", "("), total=None, detail="")

    def progress(self, done: float, total: float, detail: str = "") -> None:
        if self._bar is not None and self._bar.task_ids:
            self._bar.update(self._bar.task_ids[-1], completed=done, total=total, detail=detail)
        elif time.monotonic() - self._said > 15:
            self._said = time.monotonic()
            self._console.print(f"  {self._what}: {done:g} of {total:g} {detail}", highlight=False, markup=False)

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
