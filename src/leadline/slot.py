"""Where an intervention goes in: render a context around its slot into tokens before and after it.

The slot inside a chat template is found by a sentinel: a token that no text can contain, added to a copy of the
tokenizer and never shown to a model. Knows nothing of behaviours or of what is written into the slot.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

from tokenizers import AddedToken

from leadline.behaviour import Slot
from leadline.model import FrozenModel
from leadline.spec import UserError

Form = Literal["chat", "raw"]
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
        tokens = self._plain(text)
        if not tokens:
            raise UserError(f"The target {text!r} tokenises to nothing", "target", "Give a target with some text.")
        return tokens

    def user(self, text: str, form: Form) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens before and after the slot where a user says this and nothing was said before."""
        return self.chat([{"role": "user", "content": text}]) if form == "chat" else self.raw(text)

    def written(self, text: str, form: Form) -> tuple[str, str]:
        """The same as text, special tokens by their names: for tools that have the tokenizer and not this class. That
        the tokens of the two parts are those of `user` is the rule, and has to be looked at."""
        if form == "chat":
            whole = self._rendered([{"role": "user", "content": text}], SENTINEL)
        else:
            whole = "".join(self.tokenizer.convert_ids_to_tokens(self._start(text))) + self._body(text)
        if self.slot == "start":
            return "", whole
        before, _, after = whole.partition(SENTINEL)
        return before, after

    def chat(self, messages: Sequence[dict[str, str]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens before and after the slot of a chat that ends where the reply begins."""
        return self._split(self._marked(self._rendered(messages, SENTINEL)))

    def chat_with(self, messages: Sequence[dict[str, str]], text: str) -> tuple[int, ...]:
        """All tokens of the same chat with `text` typed at the slot: as the model's own tokenizer cuts it, so that
        what touches the text may grow together with it."""
        rendered = self._rendered(messages, text)
        return self._plain({"start": text + rendered, "before_reply": rendered + text}.get(self.slot, rendered))

    def raw(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens before and after the slot of plain text that the reply continues. Empty text is a start token."""
        return self._split([*self._start(text), *self._marked(self._body(text))])

    def raw_with(self, text: str, inserted: str) -> tuple[int, ...]:
        """All tokens of the same plain text with `inserted` typed at the slot."""
        start = self._start(text)
        if self.slot == "start" and start:
            return (*self._plain(inserted), *start, *self._plain(text))
        last = self.slot in ("after_user", "before_reply")
        return (*start, *self._plain(text + inserted if last else inserted + text))

    def _rendered(self, messages: Sequence[dict[str, str]], inserted: str) -> str:
        """The chat as the template writes it, with `inserted` at a slot that lies within a turn."""
        if not self.model.tokenizer.chat_template:
            raise UserError(
                "This model has no chat template", f"model {self.model.name}",
                "Use a behaviour with `format: raw`, or a chat model.",
            )  # fmt: skip
        turns = [dict(message) for message in messages]
        if self.slot == "system":
            if turns[0]["role"] == "system":
                turns[0]["content"] += inserted
            else:
                turns.insert(0, {"role": "system", "content": inserted})
        elif self.slot in ("before_user", "after_user"):
            users = [turn for turn in turns if turn["role"] == "user"]
            if not users:
                raise UserError("There is no user turn for the slot", f"slot {self.slot}", "Use `slot: system`.")
            text = users[-1]["content"]
            users[-1]["content"] = inserted + text if self.slot == "before_user" else text + inserted
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates raise jinja errors of their own wording ("System role not supported")
            raise UserError(
                f"The chat template refuses this context: {error}", f"slot {self.slot}", "Choose another slot."
            ) from error

    def _body(self, text: str) -> str:
        """Plain text with the sentinel at a slot that lies beside it."""
        return {"before_user": SENTINEL + text, "after_user": text + SENTINEL}.get(self.slot, text)

    def _start(self, text: str) -> tuple[int, ...]:
        """What plain text begins with: the start token, if the tokenizer has one or the text is empty."""
        return (self.model.start_token,) if self.model.tokenizer.bos_token_id is not None or not text else ()

    def _marked(self, text: str) -> list[int]:
        """Tokens of text that may hold the sentinel."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _plain(self, text: str) -> tuple[int, ...]:
        """Tokens of text as the model's own tokenizer cuts it."""
        return tuple(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])

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
