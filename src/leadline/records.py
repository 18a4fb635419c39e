"""The run directory: specs, batches, cells, events. Files appear whole or not at all and carry a hash of what they say;
a run is worked on by one process at a time. Knows nothing of models or of what the numbers mean.

Layout: `spec.json`, `items.json`, `events.jsonl`, `batches/HASH/checkpoint.safetensors`, `cells/KEY/{record.json,
intervention.safetensors, samples.parquet}`, `codes/NAME.bin`, `points.parquet`, `distances.json`, `report.html`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
import safetensors.numpy

from leadline.cache import PARTIAL, file_sha256, whole_file
from leadline.spec import UserError

RECIPE = 13  # raised when the same spec would no longer give the same numbers
Arrays = dict[str, np.ndarray[Any, Any]]
SEAL = "seal"  # the digest of a record's other fields, or of a file's arrays
DATA = "data"  # where a record that is a list stands
DISTANCES = "distances.json"  # what a finished run says, each number with its ledger
FRAGILITY = "fragility.json"  # what the solutions of a finished run bear
NAMES = {
    ".lock", "spec.json", "items.json", "events.jsonl", "batches", "cells", "codes", "points.parquet", "report.html",
    DISTANCES, FRAGILITY,
}  # fmt: skip

# points.parquet: one row a point, these columns in this order.
POINTS: dict[str, Any] = {
    "family": pl.String, "size": pl.Int64, "seed": pl.Int64, "role": pl.String, "control": pl.String,
    "beta": pl.Float64, "split": pl.String, "loss_bits": pl.Float64, "loss_low": pl.Float64, "loss_high": pl.Float64,
    "gain_bits": pl.Float64, "gain_low": pl.Float64, "gain_high": pl.Float64, "score": pl.Float64,
    "score_low": pl.Float64, "score_high": pl.Float64, "kl_bits": pl.Float64, "location_bits": pl.Float64,
    "component_bits": pl.Float64, "p_hits": pl.Int64, "p_draws": pl.Int64, "upper_bits": pl.Float64,
    "lower_bits": pl.Float64, "estimate_bits": pl.Float64, "stderr_bits": pl.Float64, "estimator": pl.String,
    "kind": pl.String, "prior": pl.String, "outcome": pl.String, "chosen": pl.Boolean, "steps": pl.Int64,
    "flops": pl.Float64, "wall_seconds": pl.Float64, "batch": pl.String, "key": pl.String,
}  # fmt: skip

OUTCOMES = {
    "reached": "the score reached the threshold",
    "out of steps": "the solver used all its steps, or had no loss left, and the score stayed below the threshold",
    "trained": "the solver used all its steps, or had no loss left; a loss alone has no threshold to reach",
    "diverged": "the loss ended above the loss with nothing in the slot",
    "non-finite": "a loss or gradient was not a finite number, and the row stopped there",
}
"""How a row can end, each in words: values of the column `outcome`."""


def digest(data: Any) -> str:
    """16 hexadecimal digits that stand for plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def default_folder(spec: dict[str, Any], behaviour: dict[str, Any]) -> Path:
    """runs/NAME-HASH: a function of what was asked, so that the same command continues."""
    name = re.sub(r"[^\w.-]+", "-", f"{behaviour['name']}-{spec['model']}").strip("-.")[:80]
    return Path("runs") / f"{name}-{digest([RECIPE, spec, behaviour])[:8]}"


@dataclass
class Run:
    """An open run directory. Use `open_run`; it holds the lock until `close`."""

    folder: Path
    lock: IO[str]

    def close(self) -> None:
        """Gives the run directory free."""
        self.lock.close()

    def abandon(self) -> None:
        """Removes a run directory in which nothing was begun: its input turned out to be wrong."""
        if not (self.folder / "spec.json").exists():
            (self.folder / ".lock").unlink(missing_ok=True)
            with suppress(OSError):  # it was there before, with files of its own
                self.folder.rmdir()

    def event(self, event: str, **fields: Any) -> None:
        """Appends one line to events.jsonl: all of it, or nothing and an OSError."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(), "event": event, **fields}) + "\n"
        path = self.folder / "events.jsonl"
        try:
            with path.open("ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if file.write(line.encode()) != len(line):  # the disk filled up on the way
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines of events.jsonl of one kind, in order; what is no whole line is left out."""
        found = []
        with suppress(OSError):
            for line in (self.folder / "events.jsonl").read_bytes().splitlines():
                with suppress(ValueError):
                    told = json.loads(line)
                    if isinstance(told, dict) and told.get("event") == event:
                        found.append(told)
        return found

    def write_json(self, name: str, data: Any) -> None:
        """Writes a JSON file of the run, whole and with its hash."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        named = json.loads(json.dumps(data if isinstance(data, dict) else {DATA: data}))
        whole_file(path, json.dumps({**named, SEAL: digest(named)}, indent=1).encode())

    def read_json(self, name: str) -> Any | None:
        """A JSON file of the run, or None. Raises UserError when it is damaged."""
        return _read_json(self.folder / name)

    def write_arrays(self, name: str, arrays: Arrays, note: dict[str, str] | None = None) -> None:
        """Writes arrays as safetensors, whole and with their hash; `note` goes into the file's header."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {label: np.ascontiguousarray(array) for label, array in arrays.items()}
        told = note or {}
        whole_file(path, safetensors.numpy.save(whole, {**told, SEAL: _arrays_digest(whole, told)}))

    def read_arrays(self, name: str) -> tuple[Arrays, dict[str, str]] | None:
        """Arrays and note of a safetensors file, or None. Raises UserError when it is damaged."""
        path = self.folder / name
        return read_arrays(path) if path.is_file() else None

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
            record = {**record, "samples_sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
        if arrays:
            self.write_arrays(f"cells/{key}/intervention.safetensors", arrays, {"format": "leadline", "key": key})
        self.write_json(f"cells/{key}/record.json", {"key": key, **record})

    def write_code(self, name: str, file: bytes) -> dict[str, Any]:
        """Writes the file of a message, whole. What its record, which is written after it, tells of it."""
        (self.folder / "codes").mkdir(exist_ok=True)
        whole_file(self.folder / "codes" / name, file)
        return {"file": name, "sha256": hashlib.sha256(file).hexdigest()}

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
        # Told before the file is there, so that a kill in between leaves the old file with its own line.
        self.event("points", sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
        whole_file(self.folder / "points.parquet", buffer.getvalue())
        return frame


def open_run(folder: Path) -> Run:
    """Opens or makes a run directory, locks it, and clears away what a killed process left half written.

    Raises UserError when it cannot be written, holds other files, or another process is working on it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_other_files(folder)
        # The lock belongs to the open file, so the kernel drops it however the process ends; no stale lock is left.
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        how = "Wait until it ends, or give another --out DIR."
        raise UserError("Another process is working on this run", str(folder), how) from error
    except OSError as error:
        lock.close()
        raise _unwritable(folder, error) from error
    for place in (folder, folder / "codes", *folder.glob("cells/*"), *folder.glob("batches/*")):
        for stale in place.glob(f".*{PARTIAL}"):
            stale.unlink()
    _mend_events(folder / "events.jsonl")
    return Run(folder, lock)


def check_folder(folder: Path) -> None:
    """Raises the UserErrors of `open_run` that can be known before the model is loaded; makes no folder."""
    if folder.exists():
        open_run(folder).close()
        return
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        code = errno.EACCES if above.is_dir() else errno.ENOTDIR
        raise _unwritable(folder, OSError(code, os.strerror(code)))


def stored_spec(folder: Path) -> dict[str, Any] | None:
    """The spec.json of a run, or None where none was begun. Raises UserError when it is damaged."""
    spec: dict[str, Any] | None = _read_json(folder / "spec.json")
    return spec


def stored_tasks(folder: Path) -> list[dict[str, Any]]:
    """What items.json holds of a run: plain data for `items.from_json`. Raises UserError when it is damaged or lost."""
    stored = _read_json(folder / "items.json")
    if stored is None:
        raise lost(folder / "items.json")
    if not isinstance(stored.get("tasks"), list):
        raise damaged(folder / "items.json")
    tasks: list[dict[str, Any]] = stored["tasks"]
    return tasks


def read_spec(folder: Path) -> Any:
    """spec.json for those who only read. Raises OSError, ValueError or UserError."""
    return _read_told(folder / "spec.json")


def _read_told(path: Path) -> Any:
    """A JSON file for those who only read: a seal that is there must fit. Raises OSError, ValueError or UserError."""
    told = json.loads(path.read_bytes())
    if isinstance(told, dict) and SEAL in told and told.pop(SEAL) != digest(told):
        raise damaged(path)
    return told


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """A JSON record of a run, for those who only read. Raises UserError when it is missing or damaged."""
    record: dict[str, Any] | None = _read_json(folder / name)
    if record is None:
        raise lost(folder / name)
    return record


def read_code(folder: Path, key: str, told: dict[str, Any]) -> bytes:
    """The file of a message, as the record `key` tells of it: its `file` and `sha256`. Raises UserError where it is
    missing or another one."""
    path = folder / "codes" / Path(told["file"]).name
    if not path.is_file() or file_sha256(path) != told["sha256"]:
        how = f"Delete the folder {folder / 'cells' / key}; the same `leadline measure` makes both again."
        raise UserError("This message is not the one that the run wrote", str(path), how)
    return path.read_bytes()


def points_are_whole(folder: Path) -> bool:
    """Whether points.parquet, if it is there, is one that this run wrote as its events tell, if they tell."""
    told, path = set(), folder / "points.parquet"
    with suppress(OSError):
        for line in (folder / "events.jsonl").read_bytes().splitlines():
            with suppress(ValueError, AttributeError):
                told.add(json.loads(line).get("sha256"))
    return told <= {None} or not path.is_file() or file_sha256(path) in told


def sampled_cells(folder: Path) -> dict[str, list[str]]:
    """The cells that kept replies, by the key of their rows in points.parquet: what was chosen among cells is scored in
    a cell of its own, whose rows name the chosen one. Raises UserError where a record cannot be read."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("cells/*/samples.parquet")):
        record = path.with_name("record.json")
        if not record.is_file():  # killed in between: it is written last
            continue
        try:
            points = _read_told(record).get("points")
            key = points[0]["key"] if points else path.parent.name
        except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
            raise damaged(record) from error
        found.setdefault(str(key), []).append(path.parent.name)
    return found


def read_samples(folder: Path, cell: str) -> pl.DataFrame:
    """The replies that a cell kept. Raises UserError when they cannot be read, or are not those that the cell's record
    tells of."""
    path = folder / "cells" / cell / "samples.parquet"
    try:
        if _read_told(path.with_name("record.json")).get("samples_sha256") not in (None, file_sha256(path)):
            raise damaged(path)
        return pl.read_parquet(path)
    except (OSError, ValueError, AttributeError, pl.exceptions.PolarsError) as error:
        raise damaged(path) from error


def differing(stored: dict[str, Any], wanted: dict[str, dict[str, Any]]) -> str:
    """The first field of spec or behaviour in which a stored run differs, with what a spec has there; "" for none."""
    for part, fields in wanted.items():
        for name, value in fields.items():
            if (had := stored.get(part, {}).get(name)) != value:
                return f"{name} ({had}, not {value})" if part == "spec" else f"behaviour ({name})"
    return ""


def is_finished(folder: Path, spec: dict[str, Any], behaviour: dict[str, Any]) -> bool:
    """Whether this folder holds the finished run of exactly this spec and behaviour, with all its records.

    Raises UserError when a record is damaged.
    """
    stored = stored_spec(folder)
    if stored is None or (stored.get("spec"), stored.get("behaviour_spec")) != (spec, behaviour):
        return False
    points = folder / "points.parquet"
    if not (stored.get("finished") and points.is_file() and points_are_whole(folder)):
        return False  # points are cut from the cells again
    keys = pl.read_parquet(points, columns=["key"])["key"].unique()
    return all(_read_json(folder / "cells" / key / "record.json") for key in keys)


def read_arrays(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Arrays and note of a safetensors file that `write_arrays` wrote. Raises UserError when it is not whole."""
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            arrays: Arrays = {label: file.get_tensor(label) for label in file.keys()}  # noqa: SIM118
            note = dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise damaged(path) from error
    if note.pop(SEAL, None) != _arrays_digest(arrays, note):
        raise damaged(path)
    return arrays, note


def damaged(path: Path) -> UserError:
    """What is said of a record that cannot be read."""
    # A cell is done or not as a whole, so one file of it is not made again by itself.
    what = f"the folder {path.parent}" if path.parent.parent.name in ("cells", "batches") else "this file"
    return UserError("This record is damaged", str(path), f"Delete {what}; the same `leadline measure` makes it again.")


def lost(path: Path) -> UserError:
    """What is said of a record that is not there."""
    how = "Copy the run's whole folder; where there is no other, `leadline measure` makes it again."
    return UserError("This run is without one of its records", str(path), how)


def _read_json(path: Path) -> Any | None:
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_bytes())
    except ValueError as error:
        raise damaged(path) from error
    if not isinstance(stored, dict) or stored.pop(SEAL, None) != digest(stored):
        raise damaged(path)
    return stored[DATA] if set(stored) == {DATA} else stored


def _arrays_digest(arrays: Arrays, note: dict[str, str]) -> str:
    found = hashlib.sha256(digest(note).encode())
    for label, array in sorted(arrays.items()):
        found.update(f"{label} {array.shape} {array.dtype}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:16]


def _refuse_other_files(folder: Path) -> None:
    """A run writes, and clears away, files of its own names only; it does not move in with somebody else's."""
    if (folder / "spec.json").is_file():
        return
    for path in sorted(folder.iterdir()):
        if path.name not in NAMES and not path.name.endswith(PARTIAL):
            how = "Give --out a new or empty folder."
            raise UserError(f"This folder holds other files ({path.name})", str(folder), how)


def _unwritable(folder: Path, error: OSError) -> UserError:
    how = "Give --out a folder that can be written."
    return UserError(f"The run directory cannot be written: {error.strerror}", str(folder), how)


def _mend_events(path: Path) -> None:
    """Drops a last line without an end: its process was killed in the middle of it."""
    if path.is_file() and not (data := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
