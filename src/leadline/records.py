"""The run directory: specs, batches, cells, events. Files appear whole or not at all, and a run is worked on by one
process at a time. Knows nothing of models or of what the numbers mean.

Layout: `spec.json`, `items.json`, `events.jsonl`, `batches/HASH/checkpoint.safetensors`, `cells/KEY/{record.json,
intervention.safetensors, samples.parquet}`, `points.parquet`, `report.html`.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
import safetensors.numpy

from leadline.cache import whole_file
from leadline.spec import UserError

RECIPE = 1  # raised when the same spec would no longer give the same numbers
Arrays = dict[str, np.ndarray[Any, Any]]

# points.parquet: one row a point, these columns in this order.
POINTS: dict[str, Any] = {
    "family": pl.String, "size": pl.Int64, "seed": pl.Int64, "role": pl.String, "control": pl.String,
    "beta": pl.Float64, "split": pl.String, "loss_bits": pl.Float64, "loss_low": pl.Float64, "loss_high": pl.Float64,
    "score": pl.Float64, "score_low": pl.Float64, "score_high": pl.Float64, "kl_bits": pl.Float64,
    "location_bits": pl.Float64, "p_hits": pl.Int64, "p_draws": pl.Int64, "upper_bits": pl.Float64,
    "lower_bits": pl.Float64, "estimate_bits": pl.Float64, "stderr_bits": pl.Float64, "estimator": pl.String,
    "kind": pl.String, "prior": pl.String, "outcome": pl.String, "chosen": pl.Boolean, "steps": pl.Int64,
    "flops": pl.Float64, "wall_seconds": pl.Float64, "batch": pl.String, "key": pl.String,
}  # fmt: skip


def digest(data: Any) -> str:
    """16 hexadecimal digits that stand for plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def default_folder(spec: dict[str, Any], behaviour: dict[str, Any]) -> Path:
    """runs/NAME-HASH: a function of what was asked, so that the same command continues."""
    name = f"{behaviour['name']}-{spec['model']}".replace("/", "-").replace(":", "-")[:80]
    return Path("runs") / f"{name}-{digest([RECIPE, spec, behaviour])[:8]}"


@dataclass
class Run:
    """An open run directory. Use `open_run`; it holds the lock until `close`."""

    folder: Path
    lock: IO[str]

    def close(self) -> None:
        """Gives the run directory free."""
        self.lock.close()

    def event(self, event: str, **fields: Any) -> None:
        """Appends one line to events.jsonl, in one write so that lines never mix."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(), "event": event, **fields}) + "\n"
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(line)

    def write_json(self, name: str, data: Any) -> None:
        """Writes a JSON file of the run, whole."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        whole_file(path, json.dumps(data, indent=1).encode())

    def read_json(self, name: str) -> Any | None:
        """A JSON file of the run, or None. Raises UserError when it is damaged."""
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            raise damaged(path) from error

    def write_arrays(self, name: str, arrays: Arrays, note: dict[str, str] | None = None) -> None:
        """Writes arrays as safetensors, whole; `note` goes into the file's header."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        whole_file(path, safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, note))

    def read_arrays(self, name: str) -> tuple[Arrays, dict[str, str]] | None:
        """Arrays and note of a safetensors file, or None. Raises UserError when it is damaged."""
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            with safetensors.safe_open(str(path), framework="np") as file:
                return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise damaged(path) from error

    def cell(self, key: str) -> dict[str, Any] | None:
        """The record of a finished cell."""
        record: dict[str, Any] | None = self.read_json(f"cells/{key}/record.json")
        return record

    def write_cell(
        self,
        key: str,
        record: dict[str, Any],
        arrays: Arrays | None = None,
        samples: list[dict[str, Any]] | None = None,
    ) -> None:
        """Stores a finished cell. The record is written last: where it is, the rest is."""
        if samples:
            buffer = io.BytesIO()
            pl.DataFrame(samples).write_parquet(buffer)
            (self.folder / "cells" / key).mkdir(parents=True, exist_ok=True)
            whole_file(self.folder / "cells" / key / "samples.parquet", buffer.getvalue())
        if arrays:
            self.write_arrays(f"cells/{key}/intervention.safetensors", arrays, {"format": "leadline", "key": key})
        self.write_json(f"cells/{key}/record.json", {"key": key, **record})

    def write_points(self, keys: Iterable[str], chosen: Collection[str]) -> pl.DataFrame:
        """points.parquet from the records of these cells, in this order; rows of the `chosen` cells say so."""
        rows = [
            {**row, "chosen": row["chosen"] or row["key"] in chosen}
            for key in keys
            for row in (self.cell(key) or {"points": []})["points"]
        ]
        frame = pl.DataFrame(rows, schema=POINTS)
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        whole_file(self.folder / "points.parquet", buffer.getvalue())
        return frame


def open_run(folder: Path) -> Run:
    """Opens or makes a run directory and locks it.

    Raises UserError when it cannot be written or another process is working on it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The lock belongs to the open file, so the kernel drops it however the process ends; no stale lock is left.
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(
            f"The run directory cannot be written: {error.strerror}", str(folder), "Give --out DIR."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise UserError(
            "Another process is working on this run", str(folder), "Wait until it ends, or give another --out DIR."
        ) from error
    for stale in folder.rglob(".*-*"):  # temporary files of a process that was killed while it wrote
        if stale.is_file():
            os.unlink(stale)
    return Run(folder, lock)


def damaged(path: Path) -> UserError:
    """What is said of a record that cannot be read."""
    return UserError("This record is damaged", str(path), "Delete this file; the same command makes it again.")


def is_finished(folder: Path, spec: dict[str, Any]) -> bool:
    """Whether this folder holds the finished run of exactly this spec. Raises UserError when its spec is damaged."""
    path = folder / "spec.json"
    if not path.is_file():
        return False
    try:
        stored = json.loads(path.read_bytes())
    except ValueError as error:
        raise damaged(path) from error
    return bool(stored.get("spec") == spec and stored.get("finished"))
