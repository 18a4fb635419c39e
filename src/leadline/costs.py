"""What a plan will cost on this machine: minutes and memory, from a measured rate. Estimates, and said to be."""

from __future__ import annotations

import time

import torch

from leadline.behaviour import Behaviour
from leadline.edits import EmbeddingEdit
from leadline.engine import Context, Engine
from leadline.items import CONTROL_KINDS
from leadline.model import FrozenModel
from leadline.plan import BUDGETS, outline
from leadline.spec import RunSpec


def plan_lines(spec: RunSpec, behaviour: Behaviour, model: FrozenModel) -> list[str]:
    """The plan in words: a line a stage with batches, sequences and minutes, then the sum and the memory."""
    kinds = CONTROL_KINDS if behaviour.constant else ("permuted",)
    tasks = ["", *(f"{kinds[n % len(kinds)]}-{n // len(kinds)}" for n in range(spec.controls))]
    train, score = _seconds_a_sequence(model)
    lines, total = [], 0.0
    for line in outline(spec, tasks):
        if behaviour.scored == "loss" and line.what.startswith(("bisection", "choice", "certified")):
            continue
        seconds = line.passes * train + line.scored * score
        total += seconds
        lines.append(f"  {line.what:<45} {line.batches:>3} batches {line.passes:>7} trained {line.scored:>7} scored "
                     f"{seconds / 60:6.1f} min")  # fmt: skip
    name = f"{spec.behaviour} on {spec.model}: {', '.join(spec.family)}, sizes {', '.join(map(str, spec.sizes))}"
    controls = f", controls {', '.join(tasks[1:])}" if tasks[1:] else ", no controls"
    return [
        f"Plan: {name}{controls}",
        *lines,
        f"  at most about {total / 60:.1f} minutes and {_gigabytes(spec, model):.1f} GB of memory (estimates from "
        f"{1e3 * train:.0f} ms a trained and {1e3 * score:.0f} ms a scored sequence, just measured)",
    ]


def _seconds_a_sequence(model: FrozenModel) -> tuple[float, float]:
    """Seconds for one sequence with and without a backward pass: 8 rows of 32 tokens, timed after one warm-up."""
    token = model.end_of_reply
    contexts = [Context((token,), (token,) * 26, (token,) * 5)] * 8
    engine, seconds = Engine(model), []
    values = torch.zeros(8, 1, model.hidden_size, device=model.device, requires_grad=True)
    for backward in (True, True, False):
        begin = time.perf_counter()
        with torch.set_grad_enabled(backward):
            nats = engine.target_logits(contexts, EmbeddingEdit(values, (1,) * 8)).nats()
        if backward:
            nats.sum().backward()  # type: ignore[no-untyped-call]
        seconds.append((time.perf_counter() - begin) / 8)
    return seconds[1], seconds[2]


def _gigabytes(spec: RunSpec, model: FrozenModel) -> float:
    """Weights (twice where near ties need a float32 copy) and the activations of one batch: about 40 numbers of the
    hidden size for each layer and token."""
    width = 2 if model.compute.dtype == "bfloat16" else 4
    weights = model.num_parameters * (width + (4 if width == 2 else 0))
    tokens = BUDGETS[spec.scale].sequences * 48
    return float((weights + tokens * len(model.layers) * 40 * model.hidden_size * width) / 1e9)
