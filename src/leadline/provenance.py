"""What a number was made with: code, model, versions, machine. Knows nothing of what was measured."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

import leadline
from leadline.model import FrozenModel
from leadline.plan import BUDGETS, TEXT_BUDGETS
from leadline.records import RECIPE
from leadline.spec import RunSpec

WITH = {
    "model_hash": "set of weights", "tokenizer_hash": "tokenizer", "template_hash": "chat template",
    "torch": "version of torch", "transformers": "version of transformers", "recipe": "version of leadline's recipe",
    "budget": "budget of its solvers", "text_budget": "budget of its searches for texts",
    "device": "kind of device",
}  # fmt: skip
"""What each field of `made_with` is, in words."""


def made_with(spec: RunSpec, model: FrozenModel) -> dict[str, Any]:
    """All that changes a run's numbers beside what was asked for and how it is computed, as fields of its provenance:
    a run goes on only under the same ones."""
    return {
        "model_hash": model.weight_hash, "tokenizer_hash": model.tokenizer_hash, "template_hash": model.template_hash,
        "torch": str(torch.__version__), "transformers": transformers.__version__, "recipe": RECIPE,
        "budget": asdict(BUDGETS[spec.scale]), "text_budget": asdict(TEXT_BUDGETS[spec.scale]),
        "device": model.device.type,
    }  # fmt: skip


def provenance(spec: RunSpec, model: FrozenModel) -> dict[str, Any]:
    """`made_with`, and what a reader may ask about beside it."""
    commit, dirty = _commit()
    return {
        "leadline": leadline.__version__, "commit": commit, "dirty": dirty, "python": platform.python_version(),
        "dtype": model.compute.dtype, "attention": model.compute.attention, "threads": model.compute.threads,
        "compute": model.compute.why, "model": model.name, "revision": model.revision,
        "parameters": model.num_parameters, "hidden_size": model.hidden_size, **made_with(spec, model),
    }  # fmt: skip


def _commit() -> tuple[str, bool]:
    """Commit of the source tree leadline runs from, and whether it has changes; nothing where it is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "", False

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
