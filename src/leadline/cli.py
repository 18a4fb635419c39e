"""The command line. Exit codes: 0 done, 1 a run failed, 2 the user's input is wrong.

Torch is imported only by commands that need it, so that --help, show, report and list answer at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import App, Parameter
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

import leadline
from leadline.spec import RunSpec, Scale, UserError, field_errors

EPILOGUE = """Examples:

  leadline measure                                         the main job on the built-in default
  leadline measure --model organism:tiny --scale ci        a minute on a laptop, no download
  leadline measure --behaviour my.jsonl --sizes 1,2,4      lines with "prompt" and "target"
  leadline measure spec.yaml --plan                        what it would do and cost
  leadline show runs/NAME                                  the numbers again
"""

app = App(
    name="leadline",
    version=leadline.__version__,
    help="How many bits of information does it take to push a frozen language model into a behaviour?",
    help_epilogue=EPILOGUE,
    help_format="plaintext",
)


@app.command
def measure(
    spec: Path | None = None,
    /,
    *,
    model: str | None = None,
    behaviour: str | None = None,
    family: str | None = None,
    sizes: str | None = None,
    seeds: int | None = None,
    threshold: float | None = None,
    controls: int | None = None,
    items: int | None = None,
    draws: int | None = None,
    prior_draws: int | None = None,
    scale: Scale | None = None,
    out: Path | None = None,
    plan: bool = False,
) -> None:
    """Measure how many bits it takes to push a model into a behaviour. The same command continues a stopped run.

    Parameters
    ----------
    spec
        YAML file with any of the fields below; what is given on the command line wins.
    model
        smollm2, organism:tiny, organism:random, a folder, gguf:FILE, or a hub id (OWNER/NAME, hf:ID@REVISION).
    behaviour
        A built-in name (see `leadline list behaviours`), a .yaml or a .jsonl file.
    family
        soft_prompt, soft_subspace, or both with a comma between.
    sizes
        Tokens or dimensions, increasing, for example 1,2,4,8.
    seeds
        Restarts of each size.
    threshold
        The score that counts as the behaviour, above 0 and at most 1.
    controls
        Matched controls.
    items
        Test items; as many again for validation and confirmation.
    draws
        Fresh draws of q behind the certified upper bound, at least 64.
    prior_draws
        Draws of the prior behind the certified lower bound.
    scale
        How long the solvers run: ci, default or full.
    out
        Run directory; by default runs/NAME-HASH.
    plan
        Print batches, minutes and memory, and stop.
    """
    given = {
        "model": model, "behaviour": behaviour, "family": _list(family), "sizes": _sizes(sizes), "seeds": seeds,
        "threshold": threshold, "controls": controls, "items": items, "draws": draws, "prior_draws": prior_draws,
        "scale": scale,
    }  # fmt: skip
    passed = _from_file(spec) | {name: value for name, value in given.items() if value is not None}
    wanted = _validated(passed, str(spec) if spec else "command line")
    console = Console(stderr=True)
    from leadline import behaviour as behaviours
    from leadline.records import default_folder, is_finished

    what = behaviours.load(wanted.behaviour)
    asked = wanted.model_dump(mode="json")
    folder = out or default_folder(asked, what.model_dump(mode="json"))
    if not plan and is_finished(folder, asked):
        console.print(f"This run is finished: {escape(str(folder))}", highlight=False)
        _show(folder)
        return
    console.print("Starting torch and transformers ...", highlight=False)
    from leadline import costs
    from leadline.measurement import measure as run
    from leadline.model import load
    from leadline.progress import RichReporter

    reporter = RichReporter(console)
    try:
        reporter.stage(f"loading {wanted.model}")
        frozen = load(wanted.model)
        reporter.note(f"Compute: {frozen.compute.dtype}, {frozen.compute.attention} attention, "
                      f"{frozen.compute.threads} threads ({frozen.compute.why}).")  # fmt: skip
        for line in costs.plan_lines(wanted, what, frozen):
            reporter.note(line)
        if plan:
            return
        reporter.note(f"Run directory: {folder} (the same command continues it)")
        fields = {name: value for name, value in passed.items() if name not in ("model", "behaviour")}
        run(frozen, what, folder, reporter, **fields)
    finally:
        reporter.close()
    _show(folder)


@app.command
def show(run: Path, /) -> None:
    """The numbers of a run in the terminal."""
    from leadline.curve import Result
    from leadline.report import print_result

    page = run / "report.html"
    print_result(Result.load(run), Console(), page if page.is_file() else None)


@app.command
def report(run: Annotated[list[Path], Parameter(negative=())], /, *, out: Path | None = None) -> None:
    """One self-contained HTML file of one or several runs.

    Parameters
    ----------
    run
        Run directories.
    out
        Where the file goes; by default report.html in the first run directory.
    """
    from leadline.report import write_page

    print(write_page(run, out))


@app.command
def view(run: Annotated[list[Path], Parameter(negative=())], /, *, port: int = 0) -> None:
    """Serve the page of runs on 127.0.0.1 until Ctrl-C.

    Parameters
    ----------
    run
        Run directories.
    port
        0 takes a free one.
    """
    from leadline.report.view import view as serve

    serve(run, port)


@app.command(name="try")
def try_(run: Path, text: str, /, *, size: int | None = None, tokens: int = 60) -> None:
    """A reply to TEXT with and without the solution that a run found.

    Parameters
    ----------
    run
        Run directory.
    text
        What the user says.
    size
        Size of the intervention; by default the smallest one that reached the threshold, else the largest.
    tokens
        Longest reply.
    """
    from leadline.trial import reply

    found = reply(run, text, size, tokens)
    console = Console()
    for label, value in (("without", found.without), (f"with {found.what}", found.with_solution)):
        console.print(f"[bold]{escape(label)}[/bold]\n{escape(value)}\n", highlight=False)


@app.command(name="list")
def list_(what: str, /) -> None:
    """What there is: behaviours, models, families or organisms.

    Parameters
    ----------
    what
        behaviours, models, families or organisms.
    """
    from leadline.catalogue import LISTS

    if what not in LISTS:
        raise UserError(f"There is no list of {what!r}", "leadline list", f"Choose one of {', '.join(LISTS)}.")
    rows = LISTS[what]()
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


@app.command
def doctor() -> None:
    """What this machine has, what leadline keeps here, and whether the main parts work."""
    from leadline.doctor import checks

    console = Console()
    failed = False
    for check in checks():
        failed |= not check.ok
        console.print(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.said}", markup=False, highlight=False)
    if failed:
        sys.exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Every failure that is the user's to mend is one message and exit code 2."""
    _quiet()
    console = Console(stderr=True)
    try:
        app(arguments, exit_on_error=False, print_error=False, console=Console())
    except UserError as error:
        _fail(console, str(error), 2)
    except cyclopts.CycloptsError as error:
        _fail(console, f"{str(error).strip()} (command line). See `leadline --help`.", 2)
    except KeyboardInterrupt:
        _fail(console, "Stopped. The same command continues where it was.", 130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        where = error.filename or "run directory"
        _fail(console, f"The run could not be written or read: {error.strerror or error} ({where}). "
                       "Make room or mend the permissions; the same command continues.", 1)  # fmt: skip
    except MemoryError:
        _fail(console, "There is not enough memory (this machine). Use a smaller model or --items.", 1)


def _fail(console: Console, message: str, code: int) -> None:
    console.print(f"leadline: {message}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def _quiet() -> None:
    """Set before torch and transformers are imported, unless the user set them.

    Other libraries' bars and advice would drown leadline's own; their errors still surface as exceptions. OpenMP's
    threads wait asleep: spinning ones made a step 2.5 times slower on a machine with one other busy process.
    """
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_WAIT_POLICY": "passive"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    from leadline.behaviour import read_text, read_yaml

    return read_yaml(read_text(path, "spec"), str(path))


def _validated(fields: dict[str, Any], where: str) -> RunSpec:
    try:
        return RunSpec.model_validate(fields)
    except ValidationError as error:
        raise field_errors(error, where, Path(where).read_text("utf-8") if Path(where).is_file() else "") from error


def _list(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _sizes(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{text!r} is no list of sizes", "--sizes", "Give numbers like 1,2,4,8.") from error


def _show(folder: Path) -> None:
    from leadline.curve import Result
    from leadline.report import print_result, write_page

    page = write_page(folder)
    print_result(Result.load(folder), Console(), page)
