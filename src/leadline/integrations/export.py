"""`leadline export`: a solution that a run found, as a folder in another tool's format.

Beside the format's own files the folder holds `leadline.json`, which says what was exported and how it is used, and the
hashes of its files. A format that cannot hold a solution refuses it: what was measured is never changed to fit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import leadline
from leadline.cache import new_folder, whole_file
from leadline.integrations import NOTE, peft_io, prompt_embeds, vocab_rows
from leadline.solution import Solution, find
from leadline.spec import UserError

FORMATS: dict[str, Callable[[Solution, Path], dict[str, Any]]] = {
    "peft": peft_io.write,
    "prompt-embeds": prompt_embeds.write,
    "vocab-rows": vocab_rows.write,
}
"""Each writes its files into a folder and returns what its note says beyond the common fields."""


def export(
    run: Path, form: str, size: int | None = None, family: str | None = None, out: Path | None = None,
    tell: Callable[[str], None] = lambda said: None,
) -> Path:  # fmt: skip
    """The folder with the run's solution in one of FORMATS; by default RUN/export/FORMAT-FAMILY-SIZE.

    tell: is told where the solution falls short of what was asked for; its note says so as well
    It appears whole or not at all. Raises UserError where the run has no such solution, the format cannot hold it, or
    the folder is in use.
    """
    _require_free(out)
    solution = find(run, size, family)
    if solution.shortfall:
        tell(solution.shortfall)
    folder = out or run / "export" / f"{form}-{solution.family}-{solution.size}"
    _require_free(folder)
    return write(solution, form, folder)


def write(solution: Solution, form: str, folder: Path) -> Path:
    """A solution in one of FORMATS, as a folder that is not there yet or empty. Raises UserError as `export`."""

    def build(partial: Path) -> None:
        told = FORMATS[form](solution, partial)
        whole_file(partial / NOTE, (json.dumps({**_about(solution, form), **told}, indent=1) + "\n").encode())

    return new_folder(folder, build)


def _require_free(folder: Path | None) -> None:
    if folder is not None and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError("There is something already", str(folder), "Give --out a new folder, or remove this one.")


def _about(solution: Solution, form: str) -> dict[str, Any]:
    """What all notes say."""
    model = solution.model
    return {
        "format": form, "leadline": leadline.__version__, "model": model.name, "revision": model.revision,
        "model_hash": model.weight_hash, "tokenizer_hash": model.tokenizer_hash, "template_hash": model.template_hash,
        "dtype": model.compute.dtype, "behaviour": solution.behaviour.name, "context_format": solution.behaviour.format,
        "slot": solution.behaviour.slot, "family": solution.family, "size": solution.size, "cell": solution.key,
        "shortfall": solution.shortfall,
    }  # fmt: skip
