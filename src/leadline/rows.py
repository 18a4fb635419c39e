"""From scores to rows of points.parquet: means, intervals, bounds, outcomes. The only place that makes rows.

Torch tensors come in, plain values go out; the estimators do the counting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from leadline.estimators.cond import cond
from leadline.estimators.kl import kl, kl_limit_bits
from leadline.estimators.monte_carlo import monte_carlo
from leadline.estimators.prefill import prefill_bits
from leadline.evaluation import in_s
from leadline.information import Bound, clopper_pearson_lower, log_ratio_bits, student_interval, wilson_interval
from leadline.items import Task
from leadline.records import POINTS, Arrays
from leadline.scoring import hits
from leadline.solvers.base import Parameters
from leadline.solvers.variational import kl_parts_bits

OUTCOMES = {
    "reached": "The score reached the threshold.",
    "out of steps": "The solver used all its steps and the score stayed below the threshold.",
    "diverged": "The loss ended above the loss with nothing in the slot.",
    "non-finite": "A loss or gradient was not a finite number; the row stopped there.",
}


@dataclass(frozen=True)
class Made:
    """How a cell was trained: optimiser steps, whether its loss was lost to non-finite numbers, seconds, FLOPs, and the
    loss with nothing in the slot, which tells a diverged cell from one that is only slow."""

    steps: int
    lost: bool
    seconds: float
    flops: float
    null_bits: float


Point = dict[str, Any]  # one row of points.parquet


def null_points(threshold: float, task: Task, scored: Mapping[str, tuple[Tensor, Tensor]], key: str) -> list[Point]:
    """Size 0 on both splits, and the direct cost of a constant reply."""
    common = {"family": "null", "size": 0, "seed": -1, "role": task.role, "control": task.name, "key": key,
              "prior": "nothing is inserted", "chosen": True}  # fmt: skip
    found = []
    for split, (bits, margins) in scored.items():
        row = {**common, **_scores(bits[None], margins[None], threshold), "split": split}
        found.append(_row(row))
        if split == "test" and row["outcome"] == "reached":
            found.append(_row({**row, "estimator": "NULL", "kind": "exact", "upper_bits": 0.0, "estimate_bits": 0.0}))
        cost = prefill_bits(bits.double().cpu().numpy())
        if split == "test" and task.target is not None and not math.isnan(cost):
            length = len(task.items["test"][0].context.target)
            found.append(_row({
                **row, "family": "prefill", "size": length, "estimator": "PREFILL", "kind": "certified upper",
                "prior": "the model's own distribution of replies", "upper_bits": cost, "estimate_bits": cost,
                "stderr_bits": 0.0, "score": 1.0, "score_low": None, "score_high": None, "outcome": "reached",
            }))  # fmt: skip
    return found


def curve_point(
    about: Point, threshold: float, split: str, bits: Tensor, margins: Tensor, parameters: Parameters | None = None,
    made: Made | None = None,
) -> Point:  # fmt: skip
    """One plain point. about: what all points of the cell share;  bits, margins: (draws, items), or (items,)."""
    items = bits.shape[-1]
    row = {**about, **_scores(bits.view(-1, items), margins.view(-1, items), threshold), "split": split}
    if parameters is not None and "log_scale" in parameters:
        location, width = kl_parts_bits(parameters)
        row |= {"kl_bits": float(location + width), "location_bits": float(location)}
    if made is not None:
        row |= {"steps": made.steps, "flops": made.flops, "wall_seconds": made.seconds}
        if made.lost:
            row["outcome"] = "non-finite"
        elif row["outcome"] != "non-finite" and row["loss_bits"] > max(made.null_bits, 1.0):
            row["outcome"] = "diverged"
    return _row(row)


def choice_point(about: Point, member: Tensor, parameters: Parameters) -> Point:
    """How many draws of q reach the threshold on validation items: what the choice of a cell rests on."""
    return _row({**about, **_counts(member, parameters), "split": "validation", "estimator": "CHOICE"})


def promise(point: Mapping[str, Any]) -> float:
    """What a cell's validation draws promise: the KL bound they would give; inf without a hit."""
    return kl_limit_bits(clopper_pearson_lower(point["p_hits"], point["p_draws"]), point["kl_bits"])


def bound_points(
    about: Point, threshold: float, margins: Tensor, parameters: Parameters, latents: Tensor
) -> tuple[list[Point], Arrays]:
    """COND and KL of the chosen cell from fresh draws on test items; the draws' log ratios and hits go on record.

    margins: (draws, items) as score_draws returns them;  latents: the draws of q that were scored
    """
    member = in_s(margins, threshold)
    counts, hit = _counts(member, parameters), member.cpu().numpy()
    mean, scale = (parameters[name].flatten().double().cpu().numpy() for name in ("mean", "log_scale"))
    ratio = np.asarray(log_ratio_bits(latents.flatten(1).double().cpu().numpy(), mean, np.exp(scale)))
    bounds = {
        "COND": cond(ratio, hit, counts["kl_bits"], prior=about["prior"]),
        "KL": kl(counts["p_hits"], counts["p_draws"], counts["kl_bits"], prior=about["prior"]),
    }
    outcome = "reached" if counts["p_hits"] else "out of steps"
    shared = {**about, **counts, "split": "test", "kind": "certified upper", "outcome": outcome}
    found = [_row({**shared, **_bound(bound), "estimator": name}) for name, bound in bounds.items()]
    return found, {"log_ratio_bits": ratio, "hit": hit, "margins": margins.cpu().numpy()}


def prior_point(about: Point, threshold: float, margins: Tensor) -> Point:
    """MC: draws of the prior itself."""
    member = in_s(margins, threshold)
    hit, draws = int(member.sum()), len(member)
    found = monte_carlo(hit, draws, prior=about["prior"])
    kind, outcome = ("exact", "reached") if found.upper else ("certified lower", "out of steps")
    return _row({**about, **_bound(found), "split": "test", "estimator": "MC", "p_hits": hit, "p_draws": draws,
                 "kind": kind, "outcome": outcome})  # fmt: skip


def _counts(member: Tensor, parameters: Parameters) -> Point:
    location, width = (float(part) for part in kl_parts_bits({k: v.double() for k, v in parameters.items()}))
    return {"p_hits": int(member.sum()), "p_draws": len(member), "kl_bits": location + width, "location_bits": location}


def _bound(bound: Bound) -> dict[str, float | None]:
    return {
        "upper_bits": bound.upper.value if bound.upper else None,
        "lower_bits": bound.lower.value if bound.lower else None,
        "estimate_bits": bound.estimate.value if bound.estimate else None,
        "stderr_bits": bound.stderr_bits if math.isfinite(bound.stderr_bits) else None,
    }


def _scores(bits: Tensor, margins: Tensor, threshold: float) -> Point:
    """Means and intervals over items of (draws, items) scores; draws of one item are averaged first, since items are
    what the claim is about."""
    cost = bits.double().mean(0).cpu().numpy()
    right = hits(margins).double().mean(0).cpu().numpy()
    score = float(right.mean())
    mean, low, high = float(cost.mean()), None, None
    if len(cost) > 1 and np.isfinite(cost).all():
        mean, low, high = student_interval(cost)
    score_low, score_high = wilson_interval(float(right.sum()), len(right))
    outcome = "reached" if score >= threshold - 1e-9 else "out of steps" if math.isfinite(mean) else "non-finite"
    return {"loss_bits": mean, "loss_low": low, "loss_high": high, "score": score, "score_low": score_low,
            "score_high": score_high, "outcome": outcome}  # fmt: skip


def _row(values: Point) -> Point:
    """All columns, in order; what a point does not have is null."""
    blank = {"estimator": "", "kind": "estimate", "chosen": False, "outcome": "out of steps", "batch": "", "steps": 0,
             "flops": 0.0, "wall_seconds": 0.0}  # fmt: skip
    return {name: values.get(name, blank.get(name)) for name in POINTS}
