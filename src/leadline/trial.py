"""`leadline try`: a reply with and without the solution that a run found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from leadline.behaviour import Behaviour
from leadline.edits import no_edit
from leadline.engine import Context, Engine
from leadline.interventions import make
from leadline.interventions.base import edit
from leadline.model import load
from leadline.priors import Priors
from leadline.probe import recorded
from leadline.records import damaged, read_arrays
from leadline.result import Result
from leadline.slot import Renderer
from leadline.spec import UserError


@dataclass(frozen=True)
class Trial:
    """Two replies to the same text.  what: the solution in words"""

    what: str
    without: str
    with_solution: str


def reply(run: Path, text: str, size: int | None = None, tokens: int = 60) -> Trial:
    """Replies of the run's model, with nothing in the slot and with the chosen solution of `size` in it.

    Raises UserError where the run has no trained solution of that size, the model is another one now, or the text
    does not fit into its window.
    """
    if tokens < 1:
        raise UserError(f"A reply of {tokens} tokens is none", "--tokens", "Give at least 1.")
    result = Result.load(run)
    row = _solution(run, result, size)
    try:
        behaviour = Behaviour.model_validate(result.spec["behaviour_spec"])
        name, provenance = str(result.spec["spec"]["model"]), result.spec["provenance"]
        wanted_hash = provenance["model_hash"]
    except (KeyError, ValidationError) as error:
        raise damaged(run / "spec.json") from error
    found, _ = read_arrays(run / "cells" / row["key"] / "intervention.safetensors")
    model = load(name, recorded(provenance) or "auto")
    if model.weight_hash != wanted_hash:
        raise UserError("The model's weights are not those of the run", str(run), "Measure again.")
    renderer = Renderer(model, behaviour.slot)
    if behaviour.format == "chat":
        before, after = renderer.chat([{"role": "user", "content": text}])
    else:
        before, after = renderer.raw(text)
    intervention = make(row["family"], row["size"], Priors(model))
    whole = len(before) + intervention.tokens + len(after) + tokens
    if whole > model.window:
        how = "Say less, or lower --tokens."
        raise UserError(f"{whole} tokens do not fit into the model's window of {model.window}", "text and reply", how)
    engine, context = Engine(model), [Context(before, after, ())]
    nothing = no_edit(1, model.hidden_size, model.network.dtype, model.device)
    with torch.no_grad():
        written = edit([intervention], [torch.from_numpy(found["mean"].copy())[None].to(model.device)])
    replies = [engine.generate(context, change, tokens)[0] for change in (nothing, written)]
    decoded = [model.tokenizer.decode(list(found), skip_special_tokens=True) for found in replies]
    return Trial(f"{row['family']} of size {row['size']}", *decoded)


def _solution(run: Path, result: Result, size: int | None) -> dict[str, Any]:
    """The test row of the solution to try."""
    wanted = {"role": "behaviour", "chosen": True, "split": "test", "beta": None, "estimator": ""}
    rows = [row for row in result.points.to_dicts() if row["size"] > 0 and wanted.items() <= row.items()]
    if not rows:
        raise UserError("This run has no trained solution yet", str(run), "Let `leadline measure` finish first.")
    sizes = sorted(row["size"] for row in rows)
    reached = [row["size"] for row in rows if row["outcome"] == "reached"]
    asked = size if size is not None else min(reached, default=max(sizes))
    if asked not in sizes:
        raise UserError(f"There is no solution of size {asked}", "--size", f"Choose one of {sizes}.")
    return next(row for row in rows if row["size"] == asked)
