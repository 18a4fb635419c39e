"""Curve: one family's size curve and rate-distortion curve, with envelope, hull, C and S, from rows of points.parquet.

Knows nothing of models, torch or how a point was made. Definitions are in docs/measurement.md section 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import polars as pl

from leadline.information import size_weights, surprisal

Row = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """The curves of one family and one target: rows of that family, and of "null" for size 0, of one subject.

    asked: the sizes that the run was asked for. They fix what choosing a size costs, also where one never finished.
    """

    family: str
    control: str
    points: pl.DataFrame
    asked: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes on the size curve, at least 1, increasing."""
        return tuple(size for size in self.size_curve()["size"].to_list() if size > 0)

    def size_curve(self) -> pl.DataFrame:
        """Held-out rows, one a size: size 0 (the null intervention, or the family's own) and the restart chosen
        on validation items."""
        null = (pl.col("family") == "null") & pl.col("estimator").is_in(["", "NULL"])
        sized = (pl.col("family") == self.family) & (pl.col("estimator") == "") & pl.col("chosen")
        rows = self.points.filter((null | sized) & pl.col("beta").is_null() & (pl.col("split") == "test"))
        # a family with a size 0 of its own, a deployed prompt without an edit, begins there
        rows = rows.sort(pl.col("family") == "null", maintain_order=True)
        return rows.unique("size", keep="first", maintain_order=True).sort("size")

    def sizes_by_validation_loss(self) -> list[int]:
        """Sizes from the least to the largest loss of their chosen restart on validation items."""
        own = (pl.col("family") == self.family) & (pl.col("estimator") == "") & (pl.col("split") == "validation")
        rows = self.points.filter(own & pl.col("beta").is_null() & pl.col("chosen") & pl.col("loss_bits").is_finite())
        return [int(size) for size in rows.sort("loss_bits")["size"].to_list()]

    def rate_distortion(self) -> pl.DataFrame:
        """Validation rows of every beta: kl_bits, loss_bits, score; sorted by size and KL."""
        own = (pl.col("family") == self.family) & (pl.col("estimator") == "") & (pl.col("split") == "validation")
        return self.points.filter(own & pl.col("beta").is_not_null()).sort("size", "kl_bits")

    def envelope(self) -> pl.DataFrame:
        """Running best over smaller sizes: size, loss_bits, score, best_size and the charge_bits of choosing that size.

        best_size has the best score (of a loss-only behaviour, the least loss). Null where nothing finite was seen.
        """
        charges = self._charges(self.sizes)
        loss: float | None = None
        score: float | None = None
        best_size: int | None = None
        table: list[Row] = []
        for row in self.size_curve().iter_rows(named=True):
            new_loss, new_score = _finite(row["loss_bits"]), _finite(row["score"])
            better = new_loss is not None and (loss is None or new_loss < loss)
            higher = new_score is not None and (score is None or new_score > score)
            if higher or (better and score is None and new_score is None):
                best_size = row["size"]
            loss, score = (new_loss if better else loss), (new_score if higher else score)
            charge = None if best_size is None else charges.get(best_size, 0.0)
            table.append(dict(zip(_ENVELOPE, (row["size"], loss, score, best_size, charge), strict=True)))
        return pl.DataFrame(table, schema=_ENVELOPE, orient="row")

    def capacity(self, tau: float) -> int | None:
        """C(tau): the smallest size whose envelope reaches tau; None: no size of the run does (censored)."""
        reached = self.envelope().filter(pl.col("score") >= tau - 1e-12)["size"]
        return int(reached[0]) if len(reached) else None

    def saturation(self, eps: float) -> int | None:
        """S(eps): the smallest size from which on every doubling that the run saw adds less than eps to the score.

        None: the last doubling still added that much, or none was seen (censored).
        """
        best = {row["size"]: row["score"] for row in self.envelope().iter_rows(named=True) if row["size"] > 0}
        sizes = [size for size, score in best.items() if score is not None]
        answer: int | None = None
        for size in reversed(sizes):
            doubled = [other for other in sizes if other >= 2 * size]
            if not doubled:
                continue
            if best[doubled[0]] - best[size] >= eps:
                break
            answer = size
        return answer

    def hull(self) -> pl.DataFrame:
        """Lower convex hull of (kl_bits, loss_bits) over all betas and sizes, down to the least loss.

        Mixtures of q attain it: their KL is at most the mixed KL, their loss is the mixed loss. A size pays its choice
        in kl_bits, so sizes may be mixed too. Columns kl_bits, loss_bits, size, beta, in order of KL.
        """
        rows = self.rate_distortion().filter(pl.col("kl_bits").is_finite() & pl.col("loss_bits").is_finite())
        charges = self._charges(rows["size"].to_list())
        corners: list[Row] = []
        paid = [row | {"kl_bits": row["kl_bits"] + charges[row["size"]]} for row in rows.iter_rows(named=True)]
        for row in sorted(paid, key=lambda row: (row["kl_bits"], row["loss_bits"])):
            if corners and row["loss_bits"] >= corners[-1]["loss_bits"]:
                continue
            while len(corners) > 1 and not _below(corners[-2], corners[-1], row):
                corners.pop()
            corners.append(row)
        return pl.DataFrame(corners, schema=rows.schema, orient="row").select("kl_bits", "loss_bits", "size", "beta")

    def _charges(self, seen: Iterable[int]) -> dict[int, float]:
        """Bits that choosing each size costs, over the sizes asked for and those seen."""
        sizes = sorted({*self.asked, *seen})
        return {size: surprisal(weight) for size, weight in size_weights(sizes).items()} if sizes else {}


_ENVELOPE = {
    "size": pl.Int64, "loss_bits": pl.Float64, "score": pl.Float64, "best_size": pl.Int64, "charge_bits": pl.Float64,
}  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _below(left: Row, middle: Row, right: Row) -> bool:
    """Whether `middle` lies strictly below the line from `left` to `right`."""
    run, rise = right["kl_bits"] - left["kl_bits"], right["loss_bits"] - left["loss_bits"]
    return bool((middle["loss_bits"] - left["loss_bits"]) * run < rise * (middle["kl_bits"] - left["kl_bits"]))
