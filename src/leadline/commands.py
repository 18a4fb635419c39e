"""The commands beside `measure`: plain functions that `cli` puts under their names, each with the help it prints.

Torch is imported inside those that need it.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console, JustifyMethod
from rich.markup import escape

from leadline.spec import UserError

SUITE_EXAMPLES = """Example:

  leadline suite examples/suite.yaml --gate 'distance >= 8' --accept not-broken

Exit codes: 0 done and every gate passed, 1 a run failed, 2 the file or a run is
refused, 3 a gate fails (before all others), 4 a gate says not broken.
"""

FRAGILITY_EXAMPLES = """Examples:

  leadline fragility runs/NAME
  leadline fragility runs/NAME --size 1 --paraphrases other-words.jsonl

A line of the file: {"prompt": "What is love?", "paraphrase": "Define love."}
"""


def show(run: Path, /) -> None:
    """The numbers of a run in the terminal.

    Parameters
    ----------
    run
        Run directory.
    """
    from leadline.report import print_result
    from leadline.result import Result

    page = run / "report.html"
    print_result(Result.load(run), Console(), page if page.is_file() else None)


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


def compare(run: Annotated[list[Path], Parameter(negative=())], /) -> None:
    """Finished runs side by side, each minus the first, paired on test items where they share them.

    Parameters
    ----------
    run
        Run directories, two or more.
    """
    from leadline.compare import load_sides
    from leadline.report.comparison import print_comparison

    print_comparison(load_sides(run), Console())


def suite(spec: Path, /, *, gate: str | None = None, accept: str | None = None, out: Path | None = None) -> None:
    """Many behaviours on one or several models, and one score card. The same command continues a stopped suite.

    Parameters
    ----------
    spec
        YAML file: name, models, behaviours, and fields of `leadline measure` that hold for all.
    gate
        'distance >= BITS': fails on an upper bound below, passes on a certified lower bound of as much.
    accept
        not-broken: a gate that neither passed nor failed counts as passed.
    out
        Folder of the suite's runs; by default runs/NAME.
    """
    from leadline.gate import parse
    from leadline.report.scorecard import show_card
    from leadline.suite_spec import read

    bits, wanted, console = parse(gate, accept), read(spec, gated=gate is not None), Console(stderr=True)
    console.print("Starting torch and transformers ...", highlight=False)
    from leadline.progress import RichReporter
    from leadline.suite import exit_code, run

    with closing(RichReporter(console)) as reporter:
        rows = run(wanted, out or wanted.folder, reporter, bits)
    show_card(rows, Console(), out or wanted.folder, bits)
    sys.exit(exit_code(rows, accept))


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
    if found.shortfall:
        _tell(found.shortfall)
    console = Console()
    for label, value in (("without", found.without), (f"with {found.what}", found.with_solution)):
        console.print(f"[bold]{escape(label)}[/bold]\n{escape(value)}\n", highlight=False)


def score(
    run: Path,
    /,
    *,
    model: str | None = None,
    temperature: float | None = None,
    reworded: Annotated[bool, Parameter(negative=())] = False,
    family: str | None = None,
    size: int | None = None,
) -> None:
    """What a solution that a run found is worth elsewhere, on the run's test items, without and with it.

    Parameters
    ----------
    run
        Run directory.
    model
        Another model: a text is typed there, numbers are taken as they are.
    temperature
        Sampled replies at this temperature: the probability that one is right.
    reworded
        The same questions put otherwise.
    family
        Of the solution; by default any family of the run.
    size
        Of the solution; by default the smallest one that reached the threshold, else the largest.
    """
    from leadline.report.columns import print_table
    from leadline.transfer import transfer

    columns: dict[str, JustifyMethod] = {"": "left", "score": "right", "95%": "left", "loss, bits": "right"}
    found = transfer(run, model, temperature, reworded, size, family)
    rows = [
        (line.what, f"{line.score:.2f}", "{:.2f}..{:.2f}".format(*line.score_interval),
         f"{line.loss_bits:.1f} ({line.loss_interval[0]:.1f}..{line.loss_interval[1]:.1f})")
        for line in found
    ]  # fmt: skip
    print_table(Console(), f"{found[0].items} test items", {**columns}, rows)


def fragility(
    run: Path,
    /,
    *,
    draws: int = 64,
    family: str | None = None,
    size: int | None = None,
    paraphrases: Path | None = None,
) -> None:
    """How little it takes to break the solutions that a run found: noise, rounding, sampling, slope and curvature.

    Every solution in numbers of a finished run, beside those of its controls.
    RUN/fragility.json is written anew; a command that was stopped continues.

    Parameters
    ----------
    run
        Run directory.
    draws
        Directions of noise and probes of the Hessian for each solution, at least 40.
    family
        Only this family; by default all of the run that have numbers.
    size
        Only this size; by default all.
    paraphrases
        A JSONL file with "prompt", a test context of the run, and "paraphrase", the same in other words.
    """
    console = Console(stderr=True)
    console.print("Starting torch and transformers ...", highlight=False)
    from leadline.fragility_run import run_fragility
    from leadline.progress import RichReporter
    from leadline.report import write_page
    from leadline.report.fragility import print_fragility

    with closing(RichReporter(console)) as reporter:
        record = run_fragility(run, reporter, draws, size, family, paraphrases)
    print_fragility(record, Console())
    print(f"\npage: {write_page(run)}")


def decode(run: Path, /) -> None:
    """The messages of a run, decoded from their bytes and scored again. Exit code 1 where bits or a score differ.

    Parameters
    ----------
    run
        Run directory.
    """
    from leadline.decoded import decoded
    from leadline.report.columns import print_table

    columns: dict[str, JustifyMethod] = {
        "file": "left", "bytes": "right", "bits": "right", "numbers": "right", "step": "right", "score": "right",
        "again": "left",
    }  # fmt: skip
    found = decoded(run)
    rows = [
        (line.file, str(line.num_bytes), str(8 * line.num_bytes), str(line.coordinates),
         f"{line.step:g}" if line.step else "cell", f"{line.score:.3f}", line.verdict)
        for line in found
    ]  # fmt: skip
    print_table(Console(), "messages decoded and scored on the test items", {**columns}, rows)
    if not all(line.holds for line in found):
        sys.exit(1)


def export(
    run: Path,
    /,
    *,
    format: Literal["peft", "prompt-embeds", "vocab-rows"],
    family: str | None = None,
    size: int | None = None,
    out: Path | None = None,
) -> None:
    """A solution that a run found, as a folder that other tools read.

    Parameters
    ----------
    run
        Run directory.
    format
        peft; prompt-embeds: embeddings and the text around them, for servers; vocab-rows (experimental): a whole model.
    family
        Of the solution; by default any family of the run.
    size
        Of the solution; by default the smallest one that reached the threshold, else the largest.
    out
        A new folder; by default RUN/export/FORMAT-FAMILY-SIZE.
    """
    from leadline.integrations.export import export as write

    print(write(run, format, size, family, out, _tell))


def _tell(said: str) -> None:
    """A sentence that is no result, on standard error."""
    Console(stderr=True).print(said, markup=False, highlight=False, soft_wrap=True)


def list_(what: str, /) -> None:
    """What there is: behaviours, models, families, organisms or scorers.

    Parameters
    ----------
    what
        behaviours, models, families, organisms or scorers.
    """
    from leadline.catalogue import LISTS

    if what not in LISTS:
        raise UserError(f"There is no list of {what!r}", "leadline list", f"Choose one of {', '.join(LISTS)}.")
    rows = LISTS[what]()
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


def doctor(*, self_test: Annotated[bool, Parameter(negative=())] = False) -> None:
    """What this machine has, what leadline keeps here, and whether the main parts work.

    Parameters
    ----------
    self_test
        Instead, run the known answers K1 to K16 of docs/measurement.md, in about a minute.
    """
    console = Console()
    if self_test:
        _self_test(console)
        return
    said = "Starting torch and transformers; a training step is timed as well, which takes some seconds ..."
    Console(stderr=True).print(said, highlight=False)
    from leadline.doctor import checks

    failed = False
    for check in checks():
        failed |= check.ok is False
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[check.ok]
        line = f"{mark} {check.name}: {check.said}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if failed:
        sys.exit(1)


def _self_test(console: Console) -> None:
    """The table on standard output once all rows are there, progress on standard error until then."""
    progress = Console(stderr=True)
    progress.print("Starting torch and transformers ...", highlight=False)
    from leadline.progress import RichReporter
    from leadline.selftest.table import rows

    with closing(RichReporter(progress)) as reporter:
        found = list(rows(reporter))
    for row in found:
        line = f"{row.verdict:<8} {row.id:<3} {row.truth}\n{'':<12} found: {row.found}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    failed = [row.id for row in found if row.holds is False]
    absent = [row.id for row in found if row.holds is None]
    words = f"{len(found) - len(failed) - len(absent)} of {len(found)} known answers hold here, in their short form"
    words += f"; {', '.join(failed)} FAILED" if failed else ""
    words += f"; {', '.join(absent)} not looked at" if absent else ""
    console.print(words, markup=False, highlight=False, soft_wrap=True)
    if failed:
        sys.exit(1)
