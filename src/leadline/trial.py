"""`leadline try`: a reply with and without the solution that a run found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leadline.edits import no_edit
from leadline.solution import find
from leadline.spec import UserError


@dataclass(frozen=True)
class Trial:
    """Two replies to the same text.  what: the solution in words;  shortfall: as of `Solution`"""

    what: str
    shortfall: str
    without: str
    with_solution: str


def reply(run: Path, text: str, size: int | None = None, tokens: int = 60) -> Trial:
    """Replies of the run's model, with nothing in the slot and with the chosen solution of `size` in it.

    Raises UserError where the run has no trained solution of that size, that solution needs conditions, the model is
    another one now, or the text does not fit into its window.
    """
    if tokens < 1:
        raise UserError(f"There is no reply of {tokens} tokens", "--tokens", "Give at least 1.")
    solution = find(run, size)
    model, context = solution.model, solution.context(text)
    whole = len(context.before) + solution.tokens + len(context.after) + tokens
    if whole > model.window:
        how = "Say less, or lower --tokens."
        raise UserError(f"{whole} tokens do not fit into the model's window of {model.window}", "text and reply", how)
    engine = solution.engine()
    nothing = no_edit(1, model.hidden_size, model.network.dtype, model.device)
    replies = [engine.generate([context], change, tokens)[0] for change in (nothing, solution.edit)]
    decoded = [model.tokenizer.decode(list(found), skip_special_tokens=True) for found in replies]
    return Trial(solution.name, solution.shortfall, *decoded)
