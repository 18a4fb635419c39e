"""K7 at length: trained nulls through `measure` in every family, as `leadline.selftest.trained_nulls` defines them.

Each null is a run of its own, about 14 seconds on one core. The record is written after every null, so a run that is
stopped leaves what it got to.

    python benchmarks/nulls.py --nulls 50 --out benchmarks/results/nulls.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import scipy.stats

from leadline.selftest import trained_nulls
from leadline.selftest.trained_nulls import Verdict, measured, null, small_model

WHOLE = "the null as a whole"


def share(count: int, total: int) -> dict[str, Any]:
    """A count with its share and the exact two-sided 95% interval (Clopper-Pearson)."""
    low, high = scipy.stats.binomtest(count, total).proportion_ci(0.95, "exact")
    return {"count": count, "of": total, "share": count / total, "low": float(low), "high": float(high)}


def summary(nulls: Sequence[Sequence[Verdict]]) -> dict[str, Any]:
    """By family, over the nulls: what was reported and why, and how many were learnt; then all families together."""
    found: dict[str, Any] = {}
    for family in dict.fromkeys(verdict.family for verdict in nulls[0]):
        own = [verdict for verdicts in nulls for verdict in verdicts if verdict.family == family]
        found[family or WHOLE] = counts(own)
    found["families one by one, added up"] = counts([v for verdicts in nulls for v in verdicts if v.family])
    return found


def counts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    total = len(verdicts)
    why = {name: sum(getattr(verdict, name) for verdict in verdicts) for name in ("bound", "reached", "better")}
    learnt = [verdict for verdict in verdicts if verdict.learnt]
    return {
        "reported": share(sum(verdict.reported for verdict in verdicts), total), "because": why,
        "own training items reach tau": share(len(learnt), total),
        "reported of those that were learnt": sum(verdict.reported for verdict in learnt),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nulls", type=int, default=50)
    parser.add_argument("--family", default="all")
    parser.add_argument("--steps", type=int, default=trained_nulls.BUDGET.gradient_steps, help="of the size curve")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, nulls, began = small_model(), [], time.process_time()
    asked = f"--nulls {args.nulls} --family {args.family} --steps {args.steps}"
    budget = replace(trained_nulls.BUDGET, gradient_steps=args.steps)
    for number in range(args.nulls):
        nulls.append(measured(model, null(number), args.family, args.steps))
        record = {
            "what": "K7: nulls of permuted labels through measure()",
            "command": f"python benchmarks/nulls.py {asked}", "nulls": len(nulls),
            "items": trained_nulls.ITEMS, "labels": len(trained_nulls.LABELS), "threshold": trained_nulls.TAU,
            "guessing_bits": trained_nulls.GUESSING_BITS, "sizes": trained_nulls.SIZES,
            "budget": asdict(budget), "text_budget": asdict(trained_nulls.TEXT_BUDGET),
            "model": asdict(trained_nulls.RECIPE), "cpu_seconds": round(time.process_time() - began, 1),
            "summary": summary(nulls),
        }  # fmt: skip
        args.out.write_text(json.dumps(record, indent=2) + "\n")
        print(f"{number + 1} of {args.nulls}, {record['cpu_seconds']} s", flush=True)


if __name__ == "__main__":
    main()
