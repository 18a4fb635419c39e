"""The rows of a report's tables, as they are printed; the terminal and the page share them.

Knows nothing of how a table looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import polars as pl

from leadline.information import Bits, Distance, at_least, at_most
from leadline.records import OUTCOMES
from leadline.report.headline import confirmation, distance_of
from leadline.report.words import NONE, UNITS, about, finite, interval, plain, size_words, span
from leadline.result import Result

EPSILON = 0.05


@dataclass(frozen=True)
class BoundRow:
    """One family, or all of them together, as printed; ledger: (what was paid for, bits) of the upper bound."""

    family: str
    size: str
    upper: str
    interval: str
    lower: str
    kind: str
    estimator: str
    prior: str
    ledger: tuple[tuple[str, str], ...] = ()
    flops: str = NONE


def bound_rows(result: Result) -> list[BoundRow]:
    """One row a family, the run's own first, and one for all families together; empty where there is no distance."""
    if distance_of(result)[0] is None:
        return []
    frontier = result.cheapest()
    rows = []
    for family, distance in frontier.distances.items():
        rows.append(_bound_row(family, distance, distance.upper))
    if frontier.upper is not None:
        upper = frontier.upper
        rows.append(
            BoundRow(
                "all together", "", at_most(upper.value), interval(upper), NONE, upper.kind,
                f"via {frontier.family}", "weights fixed in advance, null 1/2", _ledger(upper),
            )
        )  # fmt: skip
    return rows


def _bound_row(family: str, distance: Distance, upper: Bits | None) -> BoundRow:
    lower = distance.lower
    said = [bits for bits in (upper, lower) if bits is not None]
    reached = at_most(upper.value) if upper is not None else ("unreached" if family == "null" else distance.unbounded)
    return BoundRow(
        family,
        str(distance.size) if upper is not None and family in UNITS else "",
        reached,
        interval(upper),
        at_least(lower.value) if lower is not None and math.isfinite(lower.value) else NONE,
        " / ".join(dict.fromkeys(bits.kind for bits in said)) or NONE,
        " / ".join(dict.fromkeys(bits.estimator for bits in said)) or NONE,
        distance.prior or NONE,
        _ledger(upper),
        power(distance.flops) if upper is not None else NONE,
    )


def _ledger(bits: Bits | None) -> tuple[tuple[str, str], ...]:
    return tuple((what, about(paid, 2)) for what, paid in bits.ledger) if bits is not None else ()


@dataclass(frozen=True)
class SizeRow:
    """One size of the size curve as printed; gain: bits fewer than with nothing in the slot, item by item; restarts:
    least, median and largest score over seeds, on validation."""

    family: str
    size: int
    name: str
    score: str
    score_interval: str
    loss: str
    loss_interval: str
    gain: str
    gain_interval: str
    restarts: str
    outcome: str
    height: float | None


def size_rows(result: Result) -> list[SizeRow]:
    """The behaviour's size curve, size 0 first, family by family."""
    rows = []
    for family, curve in result.curves.items():
        own = (pl.col("family") == family) & (pl.col("estimator") == "") & (pl.col("split") == "validation")
        tries = curve.points.filter(own & pl.col("beta").is_null())
        for row in curve.size_curve().iter_rows(named=True):
            scores = sorted(
                s for s in tries.filter(pl.col("size") == row["size"])["score"].to_list() if s is not None and finite(s)
            )
            three = [scores[0], scores[len(scores) // 2], scores[-1]] if scores else []
            rows.append(
                SizeRow(
                    family, row["size"], size_words(family, row["size"]) if row["size"] else "0: as it is",
                    about(row["score"], 2), span(row["score_low"], row["score_high"], 2),
                    about(row["loss_bits"]), span(row["loss_low"], row["loss_high"]),
                    about(row["gain_bits"]), span(row["gain_low"], row["gain_high"]),
                    " / ".join(about(s, 2) for s in three[: len(scores)]) or NONE,
                    row["outcome"] if row["size"] else "as it is",
                    row["score"] if finite(row["score"]) else None,
                )
            )  # fmt: skip
    return rows


def certified_rows(points: pl.DataFrame) -> list[dict[str, str]]:
    """Every bound on record, one row an estimator, size and subject."""
    rows = points.filter(pl.col("upper_bits").is_not_null() | pl.col("lower_bits").is_not_null())
    return [
        {
            "who": plain(row["control"] or "behaviour"),
            "what": " ".join(
                part for part in (row["family"], str(row["size"]) if row["family"] in UNITS else "") if part
            ),
            "estimator": row["estimator"],
            "kind": row["kind"],
            "upper": at_most(row["upper_bits"]) if row["upper_bits"] is not None else NONE,
            "lower": at_least(row["lower_bits"]) if row["lower_bits"] is not None else NONE,
            "estimate": about(row["estimate_bits"])
            + (f" (se {about(row['stderr_bits'])})" if row["stderr_bits"] else ""),
            "hits": f"{row['p_hits']} of {row['p_draws']}" if row["p_draws"] else NONE,
            "kl": f"{about(row['kl_bits'])} ({about(row['location_bits'])})" if row["kl_bits"] is not None else NONE,
            "beta": f"{row['beta']:g}" if row["beta"] is not None else NONE,
            "prior": plain(row["prior"]),
        }
        for row in rows.iter_rows(named=True)
    ]


def threshold_rows(result: Result) -> list[dict[str, str]]:
    """C(tau) and S(eps) of each family whose behaviour has scores."""
    found = []
    for family, curve in result.curves.items():
        if curve.sizes and any(row.height is not None for row in size_rows(result) if row.family == family):
            capacity, saturation = curve.capacity(result.threshold), curve.saturation(EPSILON)
            found.append(
                {
                    "family": family,
                    "capacity": f"none up to {max(curve.sizes)}" if capacity is None else size_words(family, capacity),
                    "saturation": f"none up to {max(curve.sizes)}"
                    if saturation is None
                    else size_words(family, saturation),
                    "epsilon": f"{EPSILON:g}",
                }
            )
    return found


def luck_words(result: Result) -> list[str]:
    """Two checks of luck in words, where the run made them."""
    said = []
    ceiling, (rate, draws) = result.spec.get("extra", {}).get("luck_ceiling_bits"), confirmation(result)
    if ceiling is not None:
        said.append(
            f"Luck ceiling: {about(ceiling)} bits. So far away independent luck alone would lie, at the rate at which "
            f"blind draws of {result.families[0]} hit single items."
        )
    elif result.spec.get("extra", {}).get("prior_item_rate") == 0.0:
        said.append(
            f"Luck ceiling: none. Not one blind draw of {result.families[0]} hit even one item, so luck with single "
            "items explains nothing."
        )
    if rate is not None:
        said.append(
            f"Confirmation: {about(100 * rate, 0)}% of {draws} hits pass on a second set of items; "
            f"{'under half, so the number is luck with these items' if rate < 0.5 else 'under half would mean luck'}."
        )
    return said


def weight_words(result: Result) -> list[str]:
    """Of each certified curve, whether IW's weights may be averaged, and what that rests on."""
    said = []
    for curve, words in result.spec.get("extra", {}).get("weights", {}).items():
        control, family, size = curve.rsplit("/", 2)
        said.append(plain(f"{control or 'behaviour'}, {family} {size}: {words}"))
    return said


def outcome_rows(points: pl.DataFrame) -> list[dict[str, Any]]:
    """How the rows ended, the behaviour's and the controls'; bounds are not rows of a solver."""
    tried = points.filter((pl.col("estimator") == "") & (pl.col("steps") > 0) & (pl.col("split") == "validation"))
    names = [*OUTCOMES, *(name for name in tried["outcome"].unique().sort().to_list() if name not in OUTCOMES)]
    return [
        {
            "name": plain(name),
            "meaning": OUTCOMES.get(name, ""),
            "behaviour": len(tried.filter((pl.col("outcome") == name) & (pl.col("role") == "behaviour"))),
            "control": len(tried.filter((pl.col("outcome") == name) & (pl.col("role") == "control"))),
        }
        for name in names
    ]


def power(flops: float) -> str:
    """Floating point operations, "3.1e15"; a dash for none."""
    return f"{flops:.1e}".replace("e+0", "e").replace("e+", "e") if flops else NONE


def cost_words(points: pl.DataFrame) -> str:
    # the rows of one cell repeat its cost, so each cell counts once, at its largest; those of bounds sum over cells
    trained = points.filter(estimator="").group_by("key")
    cells = trained.agg(pl.col("flops").max(), pl.col("wall_seconds").max(), pl.col("steps").max())
    flops, seconds, steps = (float(cells[name].sum() or 0) for name in ("flops", "wall_seconds", "steps"))
    spent = f"{power(flops) if flops else 0} floating point operations, {seconds:.0f} s of training"
    return f"{len(cells)} cells, {steps:.0f} optimiser steps, {spent}"
