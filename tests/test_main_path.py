"""The road from the command line to backward() is short: at most 12 files and 1,500 lines, counted while it runs."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch

import leadline
from leadline import cli, plan

SOURCE = Path(leadline.__file__).parent


def test_modules_between_cli_and_backward_are_few_and_short(tmp_path, monkeypatch, tiny_model_folder):
    """On the stack when the network runs or a gradient is taken: every file that a reader of the main path meets."""
    met: set[Path] = set()

    def note_stack() -> None:
        frame = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if SOURCE in path.parents:
                met.add(path)
            frame = frame.f_back

    backward = torch.Tensor.backward
    call = torch.nn.Module.__call__

    def noted_backward(self, *arguments, **named):
        note_stack()
        return backward(self, *arguments, **named)

    def noted_call(self, *arguments, **named):
        if type(self).__name__.endswith("ForCausalLM") and torch.is_grad_enabled():
            note_stack()
        return call(self, *arguments, **named)

    monkeypatch.setattr(torch.Tensor, "backward", noted_backward)
    monkeypatch.setattr(torch.nn.Module, "__call__", noted_call)
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(3, 3, 2, 1, 2, 1, 8, 64))
    arguments = ["measure", "--model", str(tiny_model_folder), "--scale", "ci", "--sizes", "1", "--controls", "0",
                 "--items", "4", "--draws", "64", "--prior-draws", "8", "--out", str(tmp_path / "run")]  # fmt: skip
    with contextlib.suppress(SystemExit):  # code 0: the page below is the proof that it ended well
        cli.main(arguments)
    assert (tmp_path / "run" / "report.html").is_file()
    lines = {path.relative_to(SOURCE): len(path.read_text("utf-8").splitlines()) for path in met}
    assert {Path("cli.py"), Path("measurement.py"), Path("solvers/base.py"), Path("engine.py")} <= set(lines)
    assert len(lines) <= 12, lines
    assert sum(lines.values()) <= 1500, lines
