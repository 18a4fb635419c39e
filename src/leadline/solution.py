"""A solution that a run found, made ready for use: the model it belongs to, its edit, and where it goes.

Knows nothing of what is done with it: tried out, exported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from leadline.behaviour import Behaviour
from leadline.edits import Edit, KeyValueEdit
from leadline.engine import Context, Engine, shared_prefix
from leadline.interventions.base import Intervention, edit
from leadline.interventions.text_prompt import TextPrompt
from leadline.interventions.vocab_mixture import anchor_name, around
from leadline.items import SPLITS, from_json
from leadline.model import FrozenModel, load
from leadline.places import made
from leadline.priors import Priors
from leadline.probe import recorded
from leadline.records import damaged, read_arrays, read_spec, stored_tasks
from leadline.result import Result
from leadline.slot import Renderer
from leadline.spec import ANCHORED, CONDITIONED, UserError


@dataclass(frozen=True)
class Solution:
    """One trained intervention.

    model, behaviour: what it was trained on
    family, size:     what it is
    key:              of its cell in the run
    edit:             what it does, as an edit of one row
    contexts:         all contexts of the run, with the behaviour's targets
    text:             what is typed at the slot, of a text prompt; None of every other family
    shortfall:        what its user has to be told, in sentences; "" of one that reached the threshold in a finished run
    """

    model: FrozenModel
    behaviour: Behaviour
    family: str
    size: int
    key: str
    edit: Edit
    contexts: tuple[Context, ...]
    text: str | None = None
    shortfall: str = ""

    @property
    def name(self) -> str:
        return f"{self.family} of size {self.size}"

    @property
    def tokens(self) -> int:
        """Positions it takes in the model's window."""
        return self.edit.lengths[0] + self.edit.taken

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.model, self.behaviour.slot)

    @cached_property
    def shared(self) -> tuple[int, ...]:
        """What every context of the run starts with: keys and values were trained to stand behind it."""
        return shared_prefix(self.contexts)

    def engine(self) -> Engine:
        """The forward path in which the edit is where it was trained."""
        return Engine(self.model, self.shared if isinstance(self.edit, KeyValueEdit) else ())

    def context(self, text: str) -> Context:
        """A user's text around the slot. Raises UserError where a prefix would not stand where it was trained."""
        before, after = self.renderer.user(text, self.behaviour.format)
        if isinstance(self.edit, KeyValueEdit) and before[: len(self.shared)] != self.shared:
            start = self.model.tokenizer.decode(list(self.shared))
            how = f"Begin the text as they do: {start!r} stands before the slot."
            raise UserError(
                "The prefix stands behind what the run's contexts begin with, and this does not", "text", how
            )
        return Context(before, after, ())


def find(run: Path, size: int | None = None, family: str | None = None) -> Solution:
    """The solution of that size and family: of those the smallest that reached the threshold, else the largest.

    Raises UserError where the run has no such trained solution, a record is damaged, or the model is another one now.
    """
    result = Result.load(run)
    row = _row(run, result, size, family)
    if row["family"] in CONDITIONED:
        how = "Read the samples in the run's cells, or measure soft_prompt."
        raise UserError("This solution needs the conditions of a context, and a text has none", str(run), how)
    found, _ = read_arrays(run / "cells" / row["key"] / "intervention.safetensors")
    main = from_json(stored_tasks(run))[0]
    model, behaviour = subject(run, result)
    text = None
    with torch.no_grad():
        if "tokens" in found:  # of a text
            text = model.tokenizer.decode(found["tokens"].tolist(), clean_up_tokenization_spaces=False)
            written: Edit = TextPrompt(model, []).edit(torch.from_numpy(found["tokens"].copy())[None])
        else:
            latents = torch.from_numpy(found["mean"].copy())[None].to(model.device)
            written = edit([trained_intervention(run, row, Priors(model), behaviour)], [latents])
    contexts = tuple(context for split in SPLITS for context in main.contexts(split))
    named = (row["family"], row["size"], row["key"])
    return Solution(model, behaviour, *named, written, contexts, text, _shortfall(result, row))


def _shortfall(result: Result, row: dict[str, Any]) -> str:
    """What has to be said of a solution that is not what was asked for, or not yet known to be the one."""
    found = ""
    if row["score"] is not None and row["outcome"] != "reached":
        found = f"{row['family']} of size {row['size']} scores {row['score']:.2f} on test items, below the threshold "
        found += f"of {result.threshold:g}. "
    if not result.spec.get("finished"):
        found += "This run is not finished, and another solution may still take its place."
    return found.rstrip()


def subject(run: Path, result: Result, threads: int | None = None) -> tuple[FrozenModel, Behaviour]:
    """The model of a run as it was run, on so many threads where they are given, and the behaviour. Raises UserError
    where spec.json lacks them, or the model is another one now."""
    try:
        behaviour = Behaviour.model_validate(result.spec["behaviour_spec"])
        name, provenance = str(result.spec["spec"]["model"]), result.spec["provenance"]
        wanted_hash = provenance["model_hash"]
    except (KeyError, ValidationError) as error:
        raise damaged(run / "spec.json") from error
    began = recorded(provenance)
    if began is not None and threads is not None:
        began = replace(began, threads=threads)
    model = load(name, began or "auto")
    if model.weight_hash != wanted_hash:
        raise UserError("The model's weights are not those of the run", str(run), "Measure again.")
    return model, behaviour


def trained_intervention(run: Path, row: dict[str, Any], priors: Priors, behaviour: Behaviour) -> Intervention:
    """The intervention that a row's cell trained."""
    if row["family"] not in ANCHORED:
        return made(row["family"], row["size"], priors, behaviour)
    try:
        anchor = read_spec(run)["extra"]["anchors"][anchor_name(row["control"], row["size"], row["seed"])]
        return around(priors, anchor["tokens"], float(anchor["bits"]))
    except (KeyError, TypeError, ValueError) as error:
        how = "Let `leadline measure` finish first."
        raise UserError("The text that this solution stands around is not on record", str(run), how) from error


def _row(run: Path, result: Result, size: int | None, family: str | None) -> dict[str, Any]:
    """The test row of the solution that is asked for."""
    wanted = {"role": "behaviour", "chosen": True, "split": "test", "beta": None, "estimator": ""}
    rows = [row for row in result.points.to_dicts() if row["size"] > 0 and wanted.items() <= row.items()]
    if not rows:
        raise UserError("This run has no trained solution yet", str(run), "Let `leadline measure` finish first.")
    if family is not None:
        families = list(dict.fromkeys(row["family"] for row in rows))
        rows = [row for row in rows if row["family"] == family]
        if not rows:
            how = f"Choose one of {', '.join(families)}."
            raise UserError(f"There is no solution of the family {family}", "--family", how)
    named = [row for row in rows if size in (None, row["size"])]
    if not named:
        sizes = sorted({row["size"] for row in rows})
        raise UserError(f"There is no solution of size {size}", "--size", f"Choose one of {sizes}.")
    reached = [row for row in named if row["outcome"] == "reached"]
    return min(reached, key=lambda row: row["size"]) if reached else max(named, key=lambda row: row["size"])
