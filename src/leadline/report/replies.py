"""Sample replies of a run's cells, chosen and made safe to show. Model output is foreign text: never trusted.

Reads cells/KEY/samples.parquet; knows nothing of how replies were made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from leadline.records import read_samples, sampled_cells
from leadline.report.headline import distance_of
from leadline.report.words import UNITS, plain, size_words
from leadline.result import Result
from leadline.spec import UserError

REPLIES_A_CELL = 6
REPLY_CHARACTERS = 1500
SAMPLE_COLUMNS = {"item", "split", "draw", "prompt", "reply", "target", "hit"}


def reply_cells(folder: Path, result: Result) -> list[dict[str, Any]]:
    """Sample replies of every cell that kept some: first that of the reported bound, last those of the controls."""
    distance, _ = distance_of(result)
    size, estimator = (distance.size, distance.upper.estimator) if distance and distance.upper else (0, "none")
    reported = (pl.col("size") == size) & (pl.col("estimator") == estimator)
    order = result.points.sort(
        pl.col("role"), pl.col("control"), ~reported, ~pl.col("chosen"),
        ~pl.col("family").is_in(list(UNITS)), pl.col("family"), pl.col("size"), pl.col("beta"), pl.col("seed"),
        maintain_order=True,
    )  # fmt: skip
    cells: list[dict[str, Any]] = []
    sampled = sampled_cells(folder)
    for row in order.iter_rows(named=True):
        for samples in (_samples(folder, cell) for cell in sampled.pop(str(row["key"]), [])):
            hits = sum(bool(sample["hit"]) for sample in samples)
            cells.append(
                {
                    "name": plain(_cell_name(row)), "hits": hits, "count": len(samples), "chosen": bool(row["chosen"]),
                    "control": plain(row["control"]), "target": plain(_only(s["target"] for s in samples), 200),
                    "replies": [_reply(sample) for sample in _mixed(samples)],
                }
            )  # fmt: skip
    return cells


def _samples(folder: Path, cell: str) -> list[dict[str, Any]]:
    frame = read_samples(folder, cell)
    if missing := SAMPLE_COLUMNS - set(frame.columns):
        how = "Delete this cell's folder and run `leadline measure` again: it does only what is missing."
        raise UserError(f"the replies of a cell lack {', '.join(sorted(missing))}", f"cells/{cell}", how)
    return frame.sort("draw", "item", maintain_order=True).to_dicts()


def _mixed(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few replies, hits and misses both where there are both."""
    hits, misses = [s for s in samples if s["hit"]], [s for s in samples if not s["hit"]]
    half = REPLIES_A_CELL // 2
    few_hits = max(half, REPLIES_A_CELL - len(misses))
    kept = [*misses[: REPLIES_A_CELL - min(len(hits), few_hits)], *hits[:few_hits]]
    return sorted(kept, key=samples.index)


def _reply(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt": plain(sample["prompt"], 600),
        "reply": plain(sample["reply"], REPLY_CHARACTERS),
        "hit": bool(sample["hit"]),
        "draw": f"draw {sample['draw']}" if sample["draw"] else "",
        "split": plain(sample["split"]),
        "item": sample["item"],
    }


def _cell_name(row: Mapping[str, Any]) -> str:
    where = size_words(row["family"], row["size"])
    parts = [row["control"] or "the behaviour", *([row["family"], where] if where else ["nothing inserted"])]
    parts += [f"beta {row['beta']:g}"] if row["beta"] is not None else []
    parts += [f"restart {row['seed']}"] if row["seed"] >= 0 else []
    parts += ["each under a draw of q"] if row["beta"] is not None else []
    return ", ".join(parts)


def _only(values: Iterable[Any]) -> str:
    """The one value that all share, or nothing."""
    found = list(dict.fromkeys(values))
    return str(found[0]) if len(found) == 1 else ""
