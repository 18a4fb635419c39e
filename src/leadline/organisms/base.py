"""What an organism is, and how it is made once and kept as a checkpoint folder.

An organism is a small model with something known planted in it, stored as any loader of Hugging Face models reads it.
This file knows how a folder gets its name; it does not know what is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from leadline.cache import cache_folder, damaged_file, whole_folder
from leadline.spec import UserError
from leadline.training import Progress


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


def stored(organism: Organism, progress: Progress | None = None, cache: Path | None = None) -> Path:
    """The folder with the organism's checkpoint, built now if the cache does not hold it.

    It appears whole or not at all: a build that is killed, or two at once, never leave half a folder under its name.
    Raises UserError when the folder cannot be written, or holds a file that is no longer what was built.
    """
    folder = (cache_folder() if cache is None else cache) / "organisms" / f"{organism.name}-{organism.key()}"

    def build(partial: Path) -> None:
        organism.build(partial, progress or _silent)
        told = {"name": organism.name, "summary": organism.summary, "recipe": dict(organism.recipe)}
        (partial / "organism.json").write_text(json.dumps(told, indent=2) + "\n")

    try:
        whole_folder(folder, build)
        damaged = damaged_file(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The model organism:{organism.name} could not be stored: {error}",
            str(folder.parent),
            "Make room there, or set LEADLINE_CACHE to a folder that can be written.",
        ) from error
    if damaged is not None:
        raise UserError("A stored file is damaged", str(damaged), f"Delete {folder}: it is made again from its seed.")
    return folder


def _silent(_what: str, _share: float) -> None:
    return None
