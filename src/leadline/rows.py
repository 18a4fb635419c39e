"""From scores to rows of points.parquet: means, intervals, bounds, outcomes. The only place that makes rows.

Torch tensors come in, plain values go out; the estimators do the counting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from leadline.estimators.code import Cell as Box
from leadline.estimators.code import code_bound
from leadline.estimators.cond import cond, promised_bits
from leadline.estimators.importance import importance
from leadline.estimators.kl import kl
from leadline.estimators.lower import lower
from leadline.estimators.message import CODE_PRIOR, message_bound
from leadline.estimators.monte_carlo import monte_carlo
from leadline.estimators.prefill import prefill_bits
from leadline.estimators.splitting import splitting
from leadline.estimators.text import text_bound
from leadline.evaluation import in_s
from leadline.information import (
    Bound,
    Floats,
    Squeeze,
    gaussian_kl_bits,
    log_ratio_bits,
    student_interval,
    wilson_interval,
)
from leadline.items import Task
from leadline.records import POINTS, Arrays
from leadline.scoring import hits
from leadline.solvers.base import Parameters


@dataclass(frozen=True)
class Made:
    """How a cell was trained: optimiser steps, whether its loss was lost to non-finite numbers, seconds and FLOPs."""

    steps: int
    lost: bool
    seconds: float
    flops: float


Point = dict[str, Any]  # one row of points.parquet


def null_points(
    threshold: float | None, task: Task, scored: Mapping[str, tuple[Tensor, Tensor]], key: str
) -> list[Point]:
    """Size 0 on both splits, what sampling replies until one is right costs (bits a reply), and the direct cost of a
    constant reply. threshold: None where a loss alone is scored."""
    common = {"family": "null", "size": 0, "seed": -1, "role": task.role, "control": task.name, "key": key,
              "prior": "nothing is inserted", "chosen": True}  # fmt: skip
    found = []
    for split, (bits, margins) in scored.items():
        row = {**common, **_scores(bits[None], margins[None], threshold), "split": split}
        found.append(_row(row))
        if split == "test" and row["outcome"] == "reached":
            found.append(_row({**row, "estimator": "NULL", "kind": "exact", "upper_bits": 0.0, "estimate_bits": 0.0}))
        cost = prefill_bits(bits.double().cpu().numpy())
        if split == "test" and threshold is not None and math.isfinite(cost):
            found.append(_row({
                **row, "family": "best_of_n", "estimator": "BEST OF N", "kind": "exact", "upper_bits": cost,
                "prior": "the model's own replies at temperature 1; paid for every reply", "lower_bits": cost,
                "estimate_bits": cost, "stderr_bits": 0.0, "outcome": "reached", "score": None, "score_low": None,
                "score_high": None,
            }))  # fmt: skip
        if split == "test" and task.target is not None and not math.isnan(cost):
            length = len(task.items["test"][0].context.target)
            found.append(_row({
                **row, "family": "prefill", "size": length, "estimator": "PREFILL", "kind": "certified upper",
                "prior": "the model's own distribution of replies", "upper_bits": cost, "estimate_bits": cost,
                "stderr_bits": 0.0, "score": 1.0, "score_low": None, "score_high": None, "outcome": "reached",
            }))  # fmt: skip
    return found


def sampling_point(task: Task, key: str, right: int, draws: int) -> Point:
    """What sampling replies until one is a hit costs (bits a reply), of a reward: counted among `draws` replies, each
    to a test item that was drawn for it."""
    prior = "the model's own replies at temperature 1; paid for every reply"
    found = monte_carlo(right, draws, prior=prior)
    kind, outcome = ("exact", "reached") if found.upper else ("certified lower", "out of steps")
    return _row({
        "family": "best_of_n", "size": 0, "seed": -1, "role": task.role, "control": task.name, "key": key,
        "prior": prior, "chosen": True, "split": "test", "estimator": "BEST OF N", "p_hits": right, "p_draws": draws,
        "kind": kind, "outcome": outcome, **_bound(found),
    })  # fmt: skip


def without_costs(points: Sequence[Point]) -> list[Point]:
    """Points of a reward as they are stored: no reply is wanted, so none costs anything in bits, and what sampling one
    would cost by its own probability is left out."""
    blank = dict.fromkeys(("loss_bits", "loss_low", "loss_high", "gain_bits", "gain_low", "gain_high"))
    return [
        point | blank for point in points if point["estimator"] != "BEST OF N" or point["p_draws"] is not None
    ]  # fmt: skip


def curve_point(
    about: Point, threshold: float | None, split: str, bits: Tensor, margins: Tensor, null: Sequence[float] = (),
    parameters: Parameters | None = None, made: Made | None = None,
) -> Point:  # fmt: skip
    """One plain point.

    about: what all points of the cell share;  bits, margins: (draws, items), or (items,)
    threshold: None where a loss alone is scored
    null:  (items,) what the same items cost with nothing in the slot: the gain is paired with it; empty where unknown
    """
    items = bits.shape[-1]
    row = {**about, **_scores(bits.view(-1, items), margins.view(-1, items), threshold), "split": split}
    if len(null):
        row |= _gain(bits.view(-1, items), null)
    if parameters is not None and "log_scale" in parameters:
        row |= divergence(about, parameters)
    if made is not None:
        row |= {"steps": made.steps, "flops": made.flops, "wall_seconds": made.seconds}
        if made.lost:
            row["outcome"] = "non-finite"
        elif row["outcome"] != "non-finite" and len(null) and row["loss_bits"] > max(float(np.mean(null)), 1.0):
            row["outcome"] = "diverged"
    return _row(row)


def choice_point(
    about: Point, threshold: float, margins: Tensor, parameters: Parameters, latents: Tensor, draws: int
) -> Point:  # fmt: skip
    """What draws of q on validation items promise of its COND bound from `draws` fresh ones, which the choice of a cell
    rests on. Null without a hit. The other arguments as `bound_points`."""
    member = in_s(margins, threshold)
    counts, ratio = _counts(about, member, parameters), log_ratios(about, latents, parameters)
    promised = promised_bits(ratio, member.cpu().numpy(), counts["kl_bits"], draws)
    told = promised if math.isfinite(promised) else None
    return _row({**about, **counts, "split": "validation", "estimator": "CHOICE", "estimate_bits": told})


def promise(point: Mapping[str, Any]) -> float:
    """What a cell's validation draws promise, in bits; inf without a hit."""
    return math.inf if point["estimate_bits"] is None else float(point["estimate_bits"])


def bound_points(
    about: Point, threshold: float, margins: Tensor, parameters: Parameters, latents: Tensor
) -> tuple[list[Point], Arrays]:
    """COND, KL and IW of the chosen cell from fresh draws on test items; the draws' log ratios and hits go on record.

    margins: (draws, items) as score_draws returns them;  latents: the draws of q that were scored
    """
    member = in_s(margins, threshold)
    counts, hit = _counts(about, member, parameters), member.cpu().numpy()
    ratio = log_ratios(about, latents, parameters)
    bounds = {
        "COND": cond(ratio, hit, counts["kl_bits"], prior=about["prior"]),
        "KL": kl(counts["p_hits"], counts["p_draws"], counts["kl_bits"], prior=about["prior"]),
        "IW": importance(ratio, hit, counts["kl_bits"], prior=about["prior"]),
    }
    outcome = "reached" if counts["p_hits"] else "out of steps"
    shared = {**about, **counts, "split": "test", "kind": "certified upper", "outcome": outcome}
    found = [_row({**shared, **_bound(bound), "estimator": name}) for name, bound in bounds.items()]
    return found, {"log_ratio_bits": ratio, "hit": hit, "margins": margins.cpu().numpy()}


def text_points(about: Point, promised: Sequence[float], found: Sequence[float], tried: int) -> list[Point]:
    """TEXT, and what validation promised of it. promised: prices in bits of the texts that hold on validation items;
    found: of those that hold on test items too;  tried: how many were scored there"""
    choice = text_bound([-bits for bits in promised]).upper
    bound = text_bound([-bits for bits in found]).upper
    counts = {"p_hits": len(found), "p_draws": tried}
    points = [_row({**about, **counts, "split": "validation", "estimator": "CHOICE",
                    "estimate_bits": choice.value if choice else None})]  # fmt: skip
    if bound is not None:
        points.append(_row({
            **about, **counts, "split": "test", "estimator": "TEXT", "kind": "certified upper", "outcome": "reached",
            "upper_bits": bound.value, "estimate_bits": bound.value, "stderr_bits": 0.0,
        }))  # fmt: skip
    return points


def uniform_point(about: Point, found: int, tried: int, price_bits: float) -> Point:
    """TEXT under another prior, all texts of that many tokens alike, `price_bits` each: `found` of them work. It stands
    beside TEXT and is no bound on the distance, whose prior is the family's own."""
    bits = price_bits - math.log2(found)
    return _row({
        **about, "prior": "all texts of that many printing tokens alike", "split": "test", "estimator": "TEXT UNIFORM",
        "kind": "certified upper", "outcome": "reached", "upper_bits": bits, "estimate_bits": bits, "stderr_bits": 0.0,
        "p_hits": found, "p_draws": tried,
    })  # fmt: skip


def prior_point(about: Point, threshold: float, margins: Tensor) -> Point:
    """MC: draws of the prior itself."""
    member = in_s(margins, threshold)
    hit, draws = int(member.sum()), len(member)
    found = monte_carlo(hit, draws, prior=about["prior"])
    kind, outcome = ("exact", "reached") if found.upper else ("certified lower", "out of steps")
    return _row({**about, **_bound(found), "split": "test", "estimator": "MC", "p_hits": hit, "p_draws": draws,
                 "kind": kind, "outcome": outcome})  # fmt: skip


def pairs_point(about: Point, threshold: float, right: int, pairs: int) -> Point:
    """LOWER: pairs of a prior draw and one item drawn for it, `right` of which were right."""
    found = lower(right, pairs, threshold, prior=about["prior"])
    return _row({**about, **_bound(found), "split": "test", "estimator": "LOWER", "kind": "certified lower",
                 "p_hits": right, "p_draws": pairs})  # fmt: skip


def split_point(about: Point, log2_masses: Sequence[float]) -> Point:
    """SPLIT: production runs under a frozen schedule, those with mass as hits; empty where the pilot found none."""
    found = splitting(log2_masses, prior=about["prior"]) if len(log2_masses) else Bound(None, None, None, math.nan)
    outcome = "reached" if found.upper else "out of steps"
    return _row({**about, **_bound(found), "split": "test", "estimator": "SPLIT", "kind": "certified upper",
                 "p_hits": sum(map(math.isfinite, log2_masses)), "p_draws": len(log2_masses) or None,
                 "outcome": outcome})  # fmt: skip


def code_point(
    about: Point, threshold: float, message: bytes = b"", bits: Tensor | None = None, margins: Tensor | None = None
) -> Point:
    """CODE: a message, and what the point decoded from it costs and does on test items, both (items,). Without a
    message none of its curve reached the threshold on validation items."""
    row = {**about, "split": "test", "estimator": "CODE", "kind": "certified upper",
           "prior": f"{CODE_PRIOR}, in coordinates of {about['prior']}"}  # fmt: skip
    if bits is not None and margins is not None:
        row |= _scores(bits[None], margins[None], threshold)
        if in_s(margins[None], threshold).item():
            row |= _bound(message_bound(message))
    return _row(row)


def cell_point(about: Point, threshold: float, margins: Tensor, box: Box) -> Point:
    """CELL: draws of the prior within a cell of its quantiles that hit, and what the cell is charged for its mass."""
    member = in_s(margins, threshold)
    hit, draws = int(member.sum()), len(member)
    return _row({**about, **_bound(code_bound(box, hit, draws, prior=about["prior"])), "split": "test",
                 "estimator": "CELL", "kind": "certified upper", "p_hits": hit, "p_draws": draws,
                 "outcome": "reached" if hit else "out of steps"})  # fmt: skip


def _counts(about: Point, member: Tensor, parameters: Parameters) -> Point:
    return {"p_hits": int(member.sum()), "p_draws": len(member), **divergence(about, parameters)}


def divergence(about: Point, parameters: Parameters) -> Point:
    """KL(q || pi) in bits, or, where q is measured against one component of a mixture, what bounds it from above."""
    mean, scale, squeeze = _gaussian(parameters)
    location, width = (float(part.sum()) for part in gaussian_kl_bits(mean, scale))
    width += squeeze.kl_bits(scale) if squeeze is not None else 0.0
    return {"kl_bits": location + width + _component_bits(about), "location_bits": location}


def log_ratios(about: Point, latents: Tensor, parameters: Parameters) -> Floats:
    """(draws,) log2 q / pi of (draws, *shape) latents, in float64; at least that where pi is a mixture."""
    ratios = log_ratio_bits(latents.flatten(1).double().cpu().numpy(), *_gaussian(parameters))
    return ratios + _component_bits(about)


def _component_bits(about: Point) -> float:
    return float(about.get("component_bits") or 0.0)


def _gaussian(parameters: Parameters) -> tuple[Floats, Floats, Squeeze | None]:
    """(d,) mean and scale of q, and what it is squeezed by, in float64."""
    told = {name: value.double().cpu().numpy() for name, value in parameters.items()}
    mean, scale = told["mean"].ravel(), np.exp(told["log_scale"].ravel())
    if "directions" not in told:
        return mean, scale, None
    # the same columns, up to their signs, as those that the solver drew with
    basis = np.linalg.qr(told["directions"].T).Q.T
    return mean, scale, Squeeze(basis, np.exp(told["log_squeeze"]))


def _bound(bound: Bound) -> dict[str, float | None]:
    return {
        "upper_bits": bound.upper.value if bound.upper else None,
        "lower_bits": bound.lower.value if bound.lower else None,
        "estimate_bits": bound.estimate.value if bound.estimate else None,
        "stderr_bits": bound.stderr_bits if math.isfinite(bound.stderr_bits) else None,
    }


def _scores(bits: Tensor, margins: Tensor, threshold: float | None) -> Point:
    """Means and intervals over items of (draws, items) scores; draws of one item are averaged first, since items are
    what the claim is about."""
    cost = bits.double().mean(0).cpu().numpy()
    mean, low, high = float(cost.mean()), None, None
    if len(cost) > 1 and np.isfinite(cost).all():
        mean, low, high = student_interval(cost)
    lost = {"loss_bits": mean, "loss_low": low, "loss_high": high}
    if threshold is None:
        return {**lost, "outcome": "trained" if math.isfinite(mean) else "non-finite"}
    right = hits(margins).double().mean(0).cpu().numpy()
    score = float(right.mean())
    score_low, score_high = wilson_interval(float(right.sum()), len(right))
    outcome = "reached" if score >= threshold - 1e-9 else "out of steps" if math.isfinite(mean) else "non-finite"
    return {**lost, "score": score, "score_low": score_low, "score_high": score_high, "outcome": outcome}


def _gain(bits: Tensor, null: Sequence[float]) -> Point:
    """How many bits fewer than with nothing in the slot, item by item: mean and Student interval over items. Pairing
    takes the spread between easy and hard items out of the interval."""
    gain = np.asarray(null) - bits.double().mean(0).cpu().numpy()
    if len(gain) < 2 or not np.isfinite(gain).all():
        return {}
    return dict(zip(("gain_bits", "gain_low", "gain_high"), student_interval(gain), strict=True))


def _row(values: Point) -> Point:
    """All columns, in order; what a point does not have is null."""
    blank = {"estimator": "", "kind": "estimate", "chosen": False, "outcome": "out of steps", "batch": "", "steps": 0,
             "flops": 0.0, "wall_seconds": 0.0}  # fmt: skip
    return {name: values.get(name, blank.get(name)) for name in POINTS}
