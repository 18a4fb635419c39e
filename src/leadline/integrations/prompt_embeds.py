"""Prompt embeddings for servers that take them (vLLM's `prompt_embeds`): the soft tokens as safetensors, and in the
note the text before and after them, from which a whole prompt is put together.

Such a server wants the embeddings of the whole prompt, templated and with nothing left to insert. `assemble` makes them
for a model that is loaded here. Elsewhere the two texts of the note are tokenised by themselves, without special tokens
added; that this gives the tokens of the measurement is checked here, on the pool's questions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from leadline.behaviour import questions
from leadline.edits import EmbeddingEdit
from leadline.integrations import NOTE
from leadline.model import FrozenModel
from leadline.slot import Renderer
from leadline.solution import Solution
from leadline.spec import UserError

TENSORS = "prompt_embeds.safetensors"
TEXT = "<|leadline text|>"  # stands in the note's texts for what the user says
HOW = (
    f"Put what the user says in the place of {TEXT} in `before` and `after`; tokenise each by itself without adding "
    "special tokens; look up their embeddings; put those of the file between the two; send the whole as prompt_embeds "
    "of a completion, not of a chat. In Python: leadline.integrations.prompt_embeds.assemble."
)


def write(solution: Solution, folder: Path) -> dict[str, Any]:
    """The embeddings (K, hidden), float32; returns the note's fields. Raises UserError for a solution that is no
    embeddings, and where the two texts would not give the tokens that were measured."""
    values = embeddings(solution, "prompt-embeds")
    before, after = solution.renderer.written(TEXT, solution.behaviour.format)
    for question in questions():
        found = solution.context(question)
        if (found.before, found.after) != tuple(_tokens(solution.model, part, question) for part in (before, after)):
            raise UserError(
                "This tokenizer joins the text around the slot: no two texts give the tokens that were measured",
                f"--format prompt-embeds, slot {solution.behaviour.slot}", "Use another slot, or `leadline try`.",
            )  # fmt: skip
    save_file({"prompt_embeds": values}, folder / TENSORS, {"format": "pt"})
    example = solution.context(questions()[0])
    told = {"text": questions()[0], "before_tokens": example.before, "after_tokens": example.after}
    return {"before": before, "after": after, "text": TEXT, "example": told, "use": HOW}


def embeddings(solution: Solution, form: str) -> Tensor:
    """(K, hidden) float32 input embeddings, on the CPU. Raises UserError where a solution is something else."""
    if not isinstance(solution.edit, EmbeddingEdit):
        how = "Export a soft_prompt or soft_subspace, or --format peft for what changes weights."
        raise UserError(f"{solution.family} is no input embeddings", f"--format {form}", how)
    return solution.edit.values[0].detach().float().cpu().contiguous()


def assemble(folder: Path, model: FrozenModel, text: str) -> Tensor:
    """(tokens, hidden) embeddings of the whole prompt with this text in the user's turn, as they enter the first block
    of the model. Raises UserError for a folder of another format, or of another model."""
    try:
        note = json.loads((folder / NOTE).read_bytes())
        values = load_file(folder / TENSORS)["prompt_embeds"]
        wanted = note["model_hash"]
    except (OSError, ValueError, KeyError) as error:
        how = "Give what `leadline export --format prompt-embeds` wrote."
        raise UserError("This folder holds no prompt embeddings", str(folder), how) from error
    if model.weight_hash != wanted:
        raise UserError("These embeddings were trained on another model", str(folder), f"Load {note['model']}.")
    parts = Renderer(model, note["slot"]).user(text, note["context_format"])
    before, after = (model.embed(torch.tensor(part, dtype=torch.long, device=model.device)) for part in parts)
    return torch.cat([before, values.to(before), after])


def _tokens(model: FrozenModel, part: str, text: str) -> tuple[int, ...]:
    """What somebody else makes of one of the two texts."""
    return tuple(model.tokenizer(part.replace(TEXT, text), add_special_tokens=False)["input_ids"])
