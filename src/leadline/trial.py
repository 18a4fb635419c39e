"""`leadline try`: a reply with and without the solution that a run found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from leadline.behaviour import Behaviour
from leadline.curve import Result
from leadline.edits import no_edit
from leadline.engine import Context, Engine
from leadline.interventions import make
from leadline.interventions.base import edit
from leadline.model import load
from leadline.priors import embedding_prior
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

    Raises UserError where the run has no trained solution of that size or the model is another one now.
    """
    result = Result.load(run)
    wanted_rows = {"role": "behaviour", "chosen": True, "split": "test", "beta": None, "estimator": ""}
    points = [
        row
        for row in result.points.to_dicts()
        if row["size"] > 0 and all(row[name] == value for name, value in wanted_rows.items())
    ]
    if not points:
        raise UserError("This run has no trained solution yet", str(run), "Let `leadline measure` finish first.")
    sizes = sorted(row["size"] for row in points)
    reached = [row["size"] for row in points if row["outcome"] == "reached"]
    wanted = size if size is not None else min(reached, default=max(sizes))
    if wanted not in sizes:
        raise UserError(f"There is no solution of size {wanted}", "--size", f"Choose one of {sizes}.")
    row = next(row for row in points if row["size"] == wanted)
    model = load(result.spec["spec"]["model"])
    if model.weight_hash != result.spec["provenance"]["model_hash"] and (
        model.compute.dtype == result.spec["provenance"]["dtype"]
    ):
        raise UserError("The model's weights are not those of the run", str(run), "Measure again.")
    behaviour = Behaviour.model_validate(result.spec["behaviour_spec"])
    renderer = Renderer(model, behaviour.slot)
    if behaviour.format == "chat":
        before, after = renderer.chat([{"role": "user", "content": text}])
    else:
        before, after = renderer.raw(text)
    intervention = make(row["family"], row["size"], embedding_prior(model))
    stored = safetensors.torch.load_file(run / "cells" / row["key"] / "intervention.safetensors")
    engine, context = Engine(model), [Context(before, after, ())]
    nothing = no_edit(1, model.hidden_size, model.network.dtype, model.device)
    with torch.no_grad():
        written = edit([intervention], [stored["mean"][None].to(model.device)])
    replies = [engine.generate(context, change, tokens)[0] for change in (nothing, written)]
    decoded = [model.tokenizer.decode(list(found), skip_special_tokens=True) for found in replies]
    return Trial(f"{row['family']} of size {row['size']}", *decoded)
