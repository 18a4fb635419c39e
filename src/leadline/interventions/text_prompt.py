"""text_prompt: n tokens of plain text typed at the slot, the same for every context.

Of all sequences of n tokens only those are texts that somebody could type: decoded to a string, put into the rendered
context and tokenised again, they come back as the same tokens between the same neighbours (`TextPrompt.text`). Which
text is likely, or works, is not known here: the prior needs the model's forward pass and stands in `texts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from leadline.edits import EmbeddingEdit
from leadline.model import FrozenModel
from leadline.slot import Renderer

REPLACEMENT = "\ufffd"  # what a tokenizer decodes to where bytes are no character


@dataclass(frozen=True)
class Place:
    """One context's slot.

    before, after: tokens around the empty slot
    typed:         all tokens of the context once a string is typed there
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    typed: Callable[[str], tuple[int, ...]]


def place(renderer: Renderer, context: str | Sequence[Mapping[str, str]]) -> Place:
    """The slot of a chat (its turns) or of plain text (a string). Raises what `Renderer.chat` and `raw` raise."""
    if isinstance(context, str):
        return Place(*renderer.raw(context), lambda text: renderer.raw_with(context, text))
    turns = [dict(turn) for turn in context]
    return Place(*renderer.chat(turns), lambda text: renderer.chat_with(turns, text))


@final
class TextPrompt:
    """Texts at the slot of some contexts, for one model. No `Intervention`: a text has no latent and no Gaussian prior.

    allowed: (vocabulary,) bool, tokens that a text may hold
    """

    family = "text_prompt"

    def __init__(self, model: FrozenModel, places: Sequence[Place]) -> None:
        self.allowed = allowed_tokens(model)
        self._model, self._places = model, tuple(places)

    def text(self, tokens: Sequence[int]) -> str | None:
        """The string that these tokens are, None if they are no text: if one of them is not allowed, or if the string,
        typed at the slot of any of the contexts, gives other tokens there or moves a neighbour's."""
        if not all(bool(self.allowed[token]) for token in tokens):
            return None
        string: str = self._model.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
        for place in self._places:
            if place.typed(string) != (*place.before, *tokens, *place.after):
                return None
        return string

    def given(self, conditions: Sequence[tuple[float, ...]]) -> TextPrompt:
        """Itself: a text is the same for every context."""
        return self

    def edit(self, latents: Tensor) -> EmbeddingEdit:
        """(rows, n) tokens as the edit that writes their embeddings."""
        return EmbeddingEdit(self._model.embed(latents.to(self._model.device)), (latents.shape[1],) * len(latents))


def allowed_tokens(model: FrozenModel) -> Tensor:
    """(vocabulary,) bool: tokens that print by themselves, line breaks among them. Not those that steer (special
    tokens, ends of a reply), not other control characters, not pieces of a character, and no rows of the embedding
    without a token. Stricter than need be: pieces that make up a character together are left out, and with them the
    texts of such characters, which can only make a bound larger."""
    tokenizer = model.tokenizer
    added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    steering = added | {*tokenizer.all_special_ids, *model.end_tokens}
    allowed = torch.zeros(model.network.get_input_embeddings().weight.shape[0], dtype=torch.bool)
    for token in range(min(len(tokenizer), len(allowed))):
        string = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        prints = bool(string) and string.replace("\n", " ").isprintable() and REPLACEMENT not in string
        allowed[token] = prints and token not in steering
    return allowed


def uniform_bits(size: int, allowed: Tensor) -> float:
    """Surprisal of any text of `size` allowed tokens under the uniform prior over such sequences: n log2(count)."""
    return size * math.log2(int(allowed.sum()))
