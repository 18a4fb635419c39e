"""Rows of points.parquet written by hand, and the Result of them: for tests of what is said of rows."""

from __future__ import annotations

from typing import Any

import polars as pl

from leadline.estimators import monte_carlo
from leadline.records import POINTS
from leadline.result import Result

COND = {"estimator": "COND", "beta": 0.04, "kl_bits": 60.0, "p_hits": 80, "p_draws": 256, "chosen": True}


def row(**values: Any) -> dict[str, Any]:
    text = {"family": "soft_prompt", "role": "behaviour", "control": "", "split": "test", "estimator": "", "key": ""}
    text |= {"kind": "estimate", "prior": "N(0, I)", "outcome": "reached"}
    numbers = {"size": 1, "seed": 0, "chosen": False, "loss_bits": 1.0, "score": 0.95}
    return dict.fromkeys(POINTS) | text | numbers | values


def cond(size: int, upper: float, estimate: float, kl_bits: float = 60.0, **values: Any) -> list[Any]:
    """A chosen cell: the row of its draws on validation items, which promise as many bits as its KL has, and its COND
    row."""
    key = f"{values.get('control', '')}/{size}"
    test = row(size=size, key=key, upper_bits=upper, estimate_bits=estimate, stderr_bits=0.5, **(COND | values))
    seen = COND | {"estimator": "CHOICE", "split": "validation", "estimate_bits": kl_bits}
    return [row(size=size, key=key, **(seen | values)), test]


def brute(size: int, hits: int, draws: int = 512, **values: Any) -> dict[str, Any]:
    found = monte_carlo(hits, draws)
    return row(
        size=size, estimator="MC", p_hits=hits, p_draws=draws, key=f"mc/{size}",
        upper_bits=found.upper.value if found.upper else None, **values,
    )  # fmt: skip


def control(name: str, **values: Any) -> dict[str, Any]:
    return {"role": "control", "control": name} | values


def result(rows: list[Any], **spec: Any) -> Result:
    sizes = sorted({row["size"] for row in rows if row["family"] == "soft_prompt"}) or [1]
    inside = {"family": ["soft_prompt"], "threshold": 0.9, "seeds": 3, "sizes": sizes} | spec.pop("spec", {})
    behaviour = {"name": "constant/x", "kind": "exact"} | spec.pop("behaviour", {})
    return Result(pl.DataFrame(rows, schema=POINTS, orient="row"), {"spec": inside, "behaviour": behaviour, **spec})


def null(score: float, **values: Any) -> dict[str, Any]:
    return row(family="null", size=0, seed=-1, score=score, loss_bits=34.7, chosen=True, **values)


def spelled_out(bits: float, size: int = 5, **values: Any) -> dict[str, Any]:
    return row(family="prefill", size=size, estimator="PREFILL", upper_bits=bits, prior="the model", **values)
