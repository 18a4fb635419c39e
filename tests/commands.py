"""The command line as the tests call it: in this process, or in one of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leadline import cli, plan

# what, where in brackets, how to mend it: one line
MESSAGE = re.compile(r"leadline: \S.* \(.+\)\. .+\.")
FEW = plan.Budget(2, 2, 2, 1, 2, 1, 8, 64)  # for tests that need a run and not its numbers


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one message with which a command refuses bad input: exit code 2, no traceback."""
    code, _, said = call(capsys, *arguments)
    assert code == 2, said
    return message(said)


def message(said: str) -> str:
    """The one message in standard error, checked to say what, where and how to mend it."""
    assert "Traceback" not in said
    found = [line for line in said.splitlines() if line.startswith("leadline: ")]
    assert len(found) == 1, said
    assert said.rstrip().endswith(found[0]), said
    assert MESSAGE.fullmatch(found[0]), found[0]
    return found[0]


def start(*arguments: object, code: str = "", **environment: str) -> subprocess.Popen[str]:
    """A command in a process of its own. code: Python run in it before, to patch what it is to do at some moment"""
    program = f"{code}\nimport sys\nfrom leadline.cli import main\nmain(sys.argv[1:])\n"
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", **environment},
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a started command."""
    with process:
        out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def run(*arguments: object, code: str = "", **environment: str) -> tuple[int, str, str]:
    """`start`, then `finish`."""
    return finish(start(*arguments, code=code, **environment))


def small(**changes: object) -> list[str]:
    """The options of a run of seconds, changed or added to by name."""
    options = {"model": "organism:random", "scale": "ci", "sizes": 1, "controls": 0, "items": 4, "draws": 64,
               "prior_draws": 8, **changes}  # fmt: skip
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def small_run(folder: Path, **changes: object) -> Path:
    """A finished run of a few steps on the random organism."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plan.BUDGETS, "ci", FEW)
        with pytest.raises(SystemExit) as ended:
            cli.main(["measure", *small(out=folder, **changes)])
    assert not ended.value.code
    return folder


def save(folder: Path, network: Any, tokenizer: Any) -> Path:
    """A model folder as save_pretrained writes it."""
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
