"""The loops that speed.py compares, one process a job: `python benchmarks/loops.py JOB`, JSON in and JSON out."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from machine import machine

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

SEEDS = 3  # restarts of every size of a curve


@dataclass(frozen=True)
class Job:
    """What one process is asked for.

    items:  file of the contexts, by task and split, as the process "items" writes it. A loop that is not leadline's own
            must not have leadline's model in its memory
    loop:   "leadline", "peft" or "unfrozen";  dtype: of the loops that do not choose one
    what:   "items", "step", "run" or "curve";  sizes: soft tokens, one for a step or a run
    every:  steps between two looks at the held-out loss
    seed:   of a step's or a run's start
    goals:  of each size, the held-out loss in bits a reply at which leadline is done; none where nothing is asked
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
    seed: int = 0
    goals: tuple[float, ...] = ()
    items: str = ""


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
        torch.set_num_threads(model.threads_of_one_pass)
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
    return {"machine": machine(model)}


def _leadline(model: FrozenModel, job: Job, data: dict[str, list[Context]]) -> dict[str, Any]:
    """One soft prompt by leadline's own loop."""
    line = _row(model, job, job.sizes[0], job.seed)
    steps, curves = _trained(model, job, [line], [data], job.goals or (0.0,))
    engine = Engine(model, shared_prefix(data["train"]))
    latents = torch.zeros(job.rows, *line.intervention.shape)
    batch = minibatch(data["train"], line, 0)
    least = floor.step_flops(engine, batch, edit([line.intervention], [latents])) / floor.product_rate(model)
    return {"step_seconds": steps, "curve": curves[0], "floor_seconds": least}


def _row(model: FrozenModel, job: Job, size: int, seed: int) -> Row:
    # Rows end by the goal here, and not where they would settle.
    return Row(f"{size} {seed}", make("soft_prompt", size, Priors(model)), Gradient(POINT_RATE), seed, job.rows)


def _trained(
    model: FrozenModel, job: Job, lines: Sequence[Row], data: Sequence[dict[str, list[Context]]], goals: Sequence[float]
) -> tuple[list[float], list[list[tuple[float, float]]]]:
    """Seconds of each step of one batch of rows, and (seconds so far, held-out loss) of each row now and then. A row
    takes no more steps once its held-out loss is at most its goal."""
    everything = [context for one in data for split in one.values() for context in split]
    objective = Objective(Engine(model, shared_prefix(everything)))
    steps: list[float] = []
    curves: list[list[tuple[float, float]]] = [[] for _ in lines]
    clock = [time.perf_counter()]

    def loss(step: int, latents: list[torch.Tensor]) -> torch.Tensor:
        running = [row for row, drawn in enumerate(latents) if len(drawn)]
        contexts = [context for row in running for context in minibatch(data[row]["train"], lines[row], step)]
        change = edit([lines[row].intervention for row in running], [latents[row] for row in running])
        means = objective.bits(contexts, change).view(len(running), -1).mean(1)
        return torch.zeros(len(lines), device=means.device).index_put((torch.tensor(running),), means)

    def after(state: State) -> None:
        wait_for(model.device)
        steps.append(time.perf_counter() - clock[0])
        if job.what != "step" and (state.step % job.every == 0 or state.step == job.steps):
            for row, line in enumerate(lines):
                if state.settled[row] < 0:
                    curves[row].append((sum(steps), _held_out(objective, data[row], line.intervention, state, row)))
                    state.settled[row] = state.step if curves[row][-1][1] <= goals[row] else -1
        clock[0] = time.perf_counter()

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
    """All sizes and restarts and the control, in the batches of leadline's plan; the control takes all steps."""
    cells = [Cell("", "soft_prompt", size, seed, None) for size in job.sizes for seed in range(SEEDS)]
    cells += [Cell("control", "soft_prompt", job.sizes[0], seed, None) for seed in range(SEEDS)]
    found, seconds = [], 0.0
    for part in batches(cells, replace(BUDGETS["default"], contexts=job.rows)):
        lines = [_row(model, job, cell.size, cell.seed) for cell in part]
        goals = [0.0 if cell.task else job.goals[job.sizes.index(cell.size)] for cell in part]
        steps, curves = _trained(model, job, lines, [control if cell.task else data for cell in part], goals)
        seconds += sum(steps)
        for cell, curve, goal in zip(part, curves, goals, strict=True):
            found.append({"size": cell.size, "seed": cell.seed, "task": cell.task, "held_out_bits": curve[-1][1],
                          "goal": goal, "reached": curve[-1][1] <= goal})  # fmt: skip
    return {"seconds": seconds, "rows": found}


def _theirs(source: str, job: Job, data: dict[str, list[Context]]) -> dict[str, Any]:
    """One soft prompt by PEFT's documented loop, or by the plain one."""
    torch.manual_seed(job.seed)
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


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    print(json.dumps(answer(Job(**{**told, "sizes": tuple(told["sizes"]), "goals": tuple(told["goals"])}))))
