"""Test items put in other words: the same target after another wording of the context.

Whether two wordings mean the same it does not know; that is the word of whoever wrote the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leadline.behaviour import Behaviour, read_text
from leadline.engine import Context
from leadline.items import SPLITS, Item, Task
from leadline.model import FrozenModel
from leadline.places import sources
from leadline.slot import Renderer
from leadline.spec import UserError

OPTION = "--paraphrases"
FIELDS = {"prompt", "paraphrase"}


@dataclass(frozen=True)
class Paraphrases:
    """Other wordings of a run's contexts.

    file:    where they are from
    of:      context -> its wordings, in the file's order, each with the line that it stands on
    """

    file: Path
    of: dict[str, tuple[tuple[int, str], ...]]

    def items(self, model: FrozenModel, behaviour: Behaviour, items: Sequence[Item], taken: int) -> list[Item]:
        """One item a wording, for those of `items` that have any. taken: positions of the window that what is inserted
        needs. Raises UserError where a wording does not fit into the window."""
        renderer, found = Renderer(model, behaviour.slot), []
        for item in items:
            for line, text in self.of.get(item.prompt, ()):
                one = put_otherwise(renderer, behaviour, item, text)
                context = one.context
                whole = len(context.before) + taken + len(context.after) + len(context.target)
                if whole > model.window:
                    what = f"{whole} tokens do not fit into the model's window of {model.window}"
                    raise UserError(what, f"{OPTION} {self.file}, line {line}", "Shorten it.")
                found.append(one)
        return found


def put_otherwise(renderer: Renderer, behaviour: Behaviour, item: Item, text: str) -> Item:
    """The item with this text for its context, a user's one turn or plain text as the behaviour has it."""
    context = Context(*renderer.user(text, behaviour.format), item.context.target, item.context.conditions)
    return replace(item, prompt=text, context=context)


def check_rewordable(behaviour: Behaviour, option: str) -> None:
    """Raises UserError where contexts have several turns, of which no text says which one is put otherwise."""
    if any(not isinstance(source, str) for source in sources(behaviour)):
        raise UserError("Contexts of several turns cannot be reworded", option, "Leave it out.")


def read_paraphrases(path: Path, behaviour: Behaviour, task: Task) -> Paraphrases:
    """Lines of a JSONL file with the fields prompt, a context of the run word by word, and paraphrase.

    Raises UserError with the line where it is malformed, names a context that the run does not have, says nothing new,
    or where no test item has a paraphrase.
    """
    check_rewordable(behaviour, OPTION)
    known = {item.prompt for split in SPLITS for item in task.items[split]}
    found: dict[str, list[tuple[int, str]]] = {}
    for number, line in enumerate(read_text(path, OPTION).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{OPTION} {path}, line {number}"
        prompt, text = _fields(line, where)
        if prompt not in known:
            raise UserError(f"The run has no context {prompt[:60]!r}", where, "Copy one of the run's items.json.")
        if text == prompt or any(text == other for _, other in found.get(prompt, [])):
            raise UserError("This paraphrase is the context itself or was given before", where, "Leave the line out.")
        found.setdefault(prompt, []).append((number, text))
    if not any(item.prompt in found for item in task.items["test"]):
        how = "Paraphrase contexts of the split test of the run's items.json."
        raise UserError("None of these is a paraphrase of a test item", f"{OPTION} {path}", how)
    return Paraphrases(path, {prompt: tuple(texts) for prompt, texts in found.items()})


def _fields(line: str, where: str) -> tuple[str, str]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise UserError("This line is not JSON", where, 'Write {"prompt": "...", "paraphrase": "..."}.') from error
    if not isinstance(row, dict) or set(row) != FIELDS or not all(isinstance(v, str) and v for v in row.values()):
        how = 'Write {"prompt": "...", "paraphrase": "..."}.'
        raise UserError("A line has exactly the fields prompt and paraphrase, both texts", where, how)
    return row["prompt"], row["paraphrase"]
