"""What a plan will cost on this machine: minutes and memory, from a measured rate. Estimates, and said to be."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from leadline import parts
from leadline.behaviour import Behaviour
from leadline.carried import carried, left_out_lines
from leadline.controls import CONTROL_KINDS, relabels
from leadline.edits import Edit, EmbeddingEdit
from leadline.engine import Context, Engine, shared_prefix
from leadline.items import sample_contexts
from leadline.model import FrozenModel
from leadline.outline import Rates, family_line, outline, priced, rate_lines
from leadline.places import made
from leadline.plan import BUDGETS, gradient_cells
from leadline.priors import Priors
from leadline.rewarded import SAMPLES
from leadline.spec import WEIGHTS, RunSpec

# Of the batch that is timed: enough sequences to fill the processor, few enough to be done in a second or two.
TIMED_ROWS, TIMED_TOKENS = 32, 2048


def plan_lines(spec: RunSpec, behaviour: Behaviour, model: FrozenModel) -> list[str]:
    """The plan in words, 80 columns wide: a line a family with its minutes, a line a stage with batches, sequences and
    minutes, then the sum and the memory."""
    priors = Priors(model)
    spec, left_out = carried(model, behaviour, spec, priors)
    labels = behaviour.reply.texts is not None and relabels(behaviour.reply.texts)
    kinds = CONTROL_KINDS if behaviour.constant else ("relabelled" if labels else "permuted",)
    kinds = ("hashed",) if behaviour.reward is not None else kinds
    tasks = ["", *(f"{kinds[n % len(kinds)]}-{n // len(kinds)}" for n in range(spec.controls))]
    exact, aimed = behaviour.scored != "loss", behaviour.reward is None
    rates = _rates(priors, behaviour, spec, tasks)
    stages, families = priced(spec, tasks, exact, aimed, rates)
    minutes = sum(stages.values()) / 60
    lines = [
        f"  {line.what:<41}{line.batches:>8}{line.passes:>9}{line.scored:>9}{stages[line.what] / 60:>9.1f}"
        for line in outline(spec, tasks, exact, aimed)
    ]
    return [
        f"Plan: {spec.behaviour} on {spec.model}",
        f"  {'each family with its controls, at most':<67}{'minutes':>9}",
        *(family_line(family, spec, families[family]) for family in spec.family),
        *(f"  {line}" for line in left_out_lines(left_out)),
        f"  restarts {spec.seeds}",
        f"  controls: {', '.join(tasks[1:]) or 'none'}",
        f"  {'at most, sequences of contexts':<41}{'batches':>8}{'trained':>9}{'scored':>9}{'minutes':>9}",
        *lines,
        f"  in all at most about {minutes:.1f} minutes and {_gigabytes(spec, model):.1f} GB of memory",
        *rate_lines(rates),
    ]


def _rates(priors: Priors, behaviour: Behaviour, spec: RunSpec, tasks: Sequence[str]) -> Rates:
    """Of each family, for one of the behaviour's own sequences: those that change weights are dearer."""
    model = priors.model
    contexts = sample_contexts(model, behaviour, spec, min(TIMED_ROWS, BUDGETS[spec.scale].sequences))
    longest = max(len(context.before) + len(context.after) + len(context.target) for context in contexts)
    contexts = contexts[: max(1, TIMED_TOKENS // longest)]
    one = torch.zeros(len(contexts), 1, model.hidden_size, device=model.device, requires_grad=True)
    plain = seconds_a_row(model, contexts, EmbeddingEdit(one, (1,) * len(contexts)))
    names: tuple[str, ...] = spec.family
    found = dict.fromkeys(names, plain)
    dear = [cell for cell in gradient_cells(spec, tasks) if cell.family in WEIGHTS]
    if dear:
        intervention = made(dear[0].family, dear[0].size, priors, behaviour)
        zeros = torch.zeros(len(contexts), *intervention.shape, device=model.device, requires_grad=True)
        changed = seconds_a_row(model, contexts, intervention.edit(zeros))
        found |= dict.fromkeys((cell.family for cell in dear), changed)
    if behaviour.reward is not None:  # a reply is written token by token, a pass each
        tokens = behaviour.reward.tokens
        found = {f: (SAMPLES * (train + score * tokens), score * tokens) for f, (train, score) in found.items()}
    return found


def seconds_a_row(model: FrozenModel, contexts: Sequence[Context], change: Edit) -> tuple[float, float]:
    """Seconds a row with and without a backward pass, the better of two after one that warms up."""
    engine = Engine(model, shared_prefix(contexts))

    def seconds(backward: bool) -> float:
        begin = time.perf_counter()
        with torch.set_grad_enabled(backward):
            nats = parts.nats(engine, contexts, change)
        if backward:
            torch.autograd.grad(nats.sum(), change.tensors, retain_graph=True)
        wait_for(model.device)
        return (time.perf_counter() - begin) / len(contexts)

    seconds(True)
    return min(seconds(True), seconds(True)), min(seconds(False), seconds(False))


def wait_for(device: torch.device) -> None:
    """Until what was asked of a GPU is done, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _gigabytes(spec: RunSpec, model: FrozenModel) -> float:
    """torch itself, the weights (again in float32 where near ties need that), and the activations of one batch: 20
    numbers of the hidden size for each layer and token, as measured on SmolLM2 (13 to 19) and the tiny model (28)."""
    width = 2 if model.compute.dtype == "bfloat16" else 4
    weights = model.num_parameters * (width + (4 if width == 2 else 0))
    tokens = BUDGETS[spec.scale].sequences * 48
    return float(0.45 + (weights + tokens * len(model.layers) * 20 * model.hidden_size * width) / 1e9)
