"""What an organism is, and how it is built once and kept: a folder that appears whole or not at all.

An organism is a small model with something known planted in it, as a checkpoint folder that any loader of Hugging
Face models reads. This file knows where the cache is and how a folder gets its name; it does not know what is in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from leadline.spec import UserError
from leadline.training import Progress

ABANDONED_SECONDS = 24 * 3600.0
"""A half-built folder older than this belongs to a build that was killed, and is swept away by the next one."""


@dataclass(frozen=True)
class Organism:
    """A model that can be made again from nothing but this.

    name:    what the user calls it, after "organism:"
    summary: what is planted in it, one sentence
    recipe:  all numbers that decide its weights; plain values, for JSON
    sources: the source files that decide its weights; an edit of one makes a new organism
    build:   writes the checkpoint into the empty folder it is given
    """

    name: str
    summary: str
    recipe: Mapping[str, object]
    sources: tuple[Path, ...]
    build: Callable[[Path, Progress], None]

    def key(self) -> str:
        """16 hexadecimal digits that change with the recipe and with the code that follows it.

        The code counts because a stale model would be a silent error, while training once more costs a minute.
        """
        told = json.dumps({"name": self.name, "recipe": dict(self.recipe)}, sort_keys=True).encode()
        digest = hashlib.sha256(told)
        for source in self.sources:
            digest.update(hashlib.sha256(source.read_bytes()).digest())
        return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where leadline keeps what it can make again: $LEADLINE_CACHE, $XDG_CACHE_HOME/leadline or ~/.cache/leadline."""
    if own := os.environ.get("LEADLINE_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "leadline"
    return Path.home() / ".cache" / "leadline"


def stored(organism: Organism, progress: Progress | None = None, cache: Path | None = None) -> Path:
    """The folder with the organism's checkpoint, built now if the cache does not hold it.

    A build writes under a name of its own and is renamed when it is complete. So a build that is killed, or two at
    once, never leave half a folder under the final name: the second of two to finish throws its own away.
    Raises UserError when the folder cannot be written.
    """
    shelf = (cache_folder() if cache is None else cache) / "organisms"
    final = shelf / f"{organism.name}-{organism.key()}"
    if final.is_dir():
        return final
    try:
        shelf.mkdir(parents=True, exist_ok=True)
        _sweep(shelf)
        _build(organism, final, progress or _silent)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the model organism:{organism.name} could not be stored: {error}",
            str(shelf),
            "Make room there, or set LEADLINE_CACHE to a folder that can be written.",
        ) from error
    return final


def _build(organism: Organism, final: Path, progress: Progress) -> None:
    partial = Path(tempfile.mkdtemp(prefix=f".{final.name}-", suffix=".partial", dir=final.parent))
    try:
        organism.build(partial, progress)
        told = {"name": organism.name, "summary": organism.summary, "recipe": dict(organism.recipe)}
        (partial / "organism.json").write_text(json.dumps(told, indent=2) + "\n")
        partial.chmod(0o755)  # mkdtemp lets the owner alone in; a shared cache is for everyone
        try:
            partial.rename(final)
        except OSError:
            if not final.is_dir():  # not another build that was faster, but a true failure
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(shelf: Path) -> None:
    for partial in shelf.glob(".*.partial"):
        with suppress(FileNotFoundError):  # its own build may finish at this moment
            if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def _silent(_what: str, _share: float) -> None:
    return None
