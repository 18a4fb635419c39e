"""Where an intervention goes in: render a context around its slot into tokens before and after it.

The slot inside a chat template is found by a sentinel: a token that no text can contain, added to a copy of the
tokenizer and never shown to a model. Knows nothing of behaviours or of what is written into the slot.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken

from leadline.behaviour import Slot
from leadline.model import FrozenModel
from leadline.spec import UserError

SENTINEL = "<|leadline slot|>"


class Renderer:
    """Turns contexts into tokens around one slot, for one model."""

    def __init__(self, model: FrozenModel, slot: Slot) -> None:
        self.model, self.slot = model, slot
        self.tokenizer: Any = copy.deepcopy(model.tokenizer)
        self.tokenizer.add_tokens([AddedToken(SENTINEL, special=True, normalized=False)])
        self.sentinel = int(self.tokenizer.convert_tokens_to_ids(SENTINEL))

    def reply(self, text: str) -> tuple[int, ...]:
        """Tokens of a reply's text, without its end token. Raises UserError if there are none."""
        tokens = tuple(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not tokens:
            raise UserError(f"The target {text!r} tokenises to nothing", "target", "Give a target with some text.")
        return tokens

    def chat(self, messages: Sequence[dict[str, str]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens before and after the slot of a chat that ends where the reply begins."""
        if not self.model.tokenizer.chat_template:
            raise UserError(
                "This model has no chat template", f"model {self.model.name}",
                "Use a behaviour with `format: raw`, or a chat model.",
            )  # fmt: skip
        turns = [dict(message) for message in messages]
        if self.slot == "system":
            if turns[0]["role"] == "system":
                turns[0]["content"] += SENTINEL
            else:
                turns.insert(0, {"role": "system", "content": SENTINEL})
        elif self.slot in ("before_user", "after_user"):
            users = [turn for turn in turns if turn["role"] == "user"]
            if not users:
                raise UserError("There is no user turn for the slot", f"slot {self.slot}", "Use `slot: system`.")
            text = users[-1]["content"]
            users[-1]["content"] = SENTINEL + text if self.slot == "before_user" else text + SENTINEL
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates raise jinja errors of their own wording ("System role not supported")
            raise UserError(
                f"The chat template refuses this context: {error}", f"slot {self.slot}", "Choose another slot."
            ) from error
        return self._split(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def raw(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens before and after the slot of plain text that the reply continues. Empty text is a start token."""
        begin = self.model.tokenizer.bos_token_id
        body = {"before_user": SENTINEL + text, "after_user": text + SENTINEL}.get(self.slot, text)
        tokens = self.tokenizer(body, add_special_tokens=False)["input_ids"]
        if begin is not None or not text:
            tokens = [self.model.start_token, *tokens]
        return self._split(tokens)

    def _split(self, tokens: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self.slot == "start":
            return (), tuple(tokens)
        if self.slot == "before_reply":
            return tuple(tokens), ()
        if tokens.count(self.sentinel) != 1:
            raise UserError(
                f"The slot was found {tokens.count(self.sentinel)} times in the rendered template", f"slot {self.slot}",
                "Choose another slot: start, system, before_user, after_user or before_reply.",
            )  # fmt: skip
        place = tokens.index(self.sentinel)
        return tuple(tokens[:place]), tuple(tokens[place + 1 :])
