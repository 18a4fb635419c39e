"""Checkpoints of one unit of work: a training batch's state, a token search's, or the margins of draws scored so far.

Written every 20 seconds, or less often where that would take more than a twentieth of the time, whole, as safetensors;
a killed process continues from the last one and, since all randomness is a function of labels and step, ends in the
same numbers. Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from leadline.progress import Reporter
from leadline.records import Run
from leadline.solvers.base import State
from leadline.solvers.token_search import State as TextState

EVERY_SECONDS = 20.0
WRITING_TIMES = 20.0  # as long as a write took, at least, until the next one


class Checkpoint:
    """The checkpoint file of one batch. `seconds` is the wall time spent on it, over all processes so far."""

    def __init__(self, run: Run, batch: str, reporter: Reporter) -> None:
        self.name = f"batches/{batch}/checkpoint.safetensors"
        self._run, self._reporter = run, reporter
        self._before = 0.0
        self._begin = self._saved = time.monotonic()
        self._writing = 0.0

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._begin

    def after_step(self, steps: int) -> Callable[[State], None]:
        """What a training batch of so many steps calls after each."""
        return lambda state: self.training(state, steps)

    def training(self, state: State, steps: int, now: bool = False) -> None:
        """After each step: reports, and saves when it is time."""
        best = min((loss for loss in state.losses if loss == loss), default=float("nan"))
        self._reporter.progress(state.step, steps, f"best loss {best:.3g} bits")
        if not self._due(now):
            return
        arrays = {
            f"{part}/{row}/{name}": value.detach().cpu().numpy()
            for part, rows in (("parameters", state.parameters), ("first", state.first), ("second", state.second))
            for row, tensors in enumerate(rows)
            for name, value in tensors.items()
        }
        note = {
            "step": state.step,
            "lost": state.lost,
            "losses": [repr(x) for x in state.losses],
            "calm": state.calm,
            "settled": state.settled,
            "seconds": self.seconds,
        }
        self._write(arrays, {"state": json.dumps(note)})

    def restore_training(self, device: torch.device) -> State | None:
        """The state of a batch that was stopped, or None."""
        found = self._run.read_arrays(self.name)
        if found is None:
            return None
        arrays, header = found
        note = json.loads(header["state"])
        self._before = float(note["seconds"])
        count = len(note["lost"])
        parts: dict[str, list[dict[str, Tensor]]] = {
            part: [{} for _ in range(count)] for part in ("parameters", "first", "second")
        }
        for label, value in arrays.items():
            part, row, name = label.split("/")
            parts[part][int(row)][name] = torch.from_numpy(value.copy()).to(device)
        losses = [float(x) for x in note["losses"]]
        moments = parts["parameters"], parts["first"], parts["second"]
        return State(note["step"], *moments, note["lost"], losses, note["calm"], note["settled"])

    def margins(self, margins: Tensor, now: bool = False) -> None:
        """After each item: reports, and saves when it is time."""
        done = int((~margins.isnan()).any(0).sum())
        alive = int((~margins[:, max(0, done - 1)].isnan()).sum())
        self._reporter.progress(done, margins.shape[1], f"{alive} of {len(margins)} draws left")
        if self._due(now):
            self._write({"margins": margins.numpy()}, {"seconds": repr(self.seconds)})

    def restore_margins(self) -> Tensor | None:
        """Margins of draws that were being scored, or None."""
        found = self._run.read_arrays(self.name)
        if found is None:
            return None
        self._before = float(found[1]["seconds"])
        return torch.from_numpy(found[0]["margins"].copy())

    def texts(self, state: TextState, steps: int, now: bool = False) -> None:
        """After each step of a token search: reports, and saves when it is time."""
        price, loss, kept = state.prices[state.best], state.losses[state.best], sum(state.works)
        best = f"{price:.3g} bits of text" if kept else f"a loss of {loss:.3g} bits"
        self._reporter.progress(state.step, steps, f"{best}, {kept} texts work")
        if self._due(now):
            note = {"state": json.dumps(asdict(state)), "seconds": repr(self.seconds)}
            self._write({}, note)

    def restore_texts(self) -> TextState | None:
        """The state of a token search that was stopped, or None."""
        found = self._run.read_arrays(self.name)
        if found is None:
            return None
        self._before = float(found[1]["seconds"])
        return TextState(**json.loads(found[1]["state"]))

    def _due(self, now: bool) -> bool:
        return now or time.monotonic() - self._saved > max(EVERY_SECONDS, WRITING_TIMES * self._writing)

    def _write(self, arrays: dict[str, Any], note: dict[str, str]) -> None:
        began = time.monotonic()
        self._run.write_arrays(self.name, arrays, note)
        self._saved = time.monotonic()
        self._writing = self._saved - began
