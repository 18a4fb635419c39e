"""Text prompts meet the model: what a text costs under the model's own distribution, and what a search for one asks.

Knows no behaviour and no solver's steps; texts are tokens here, and whether they can be typed is `TextPrompt`'s to say.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from leadline import parts
from leadline.edits import Edit, EmbeddingEdit, no_edit
from leadline.engine import Context, Engine, TargetLogits
from leadline.interventions.base import Writes
from leadline.interventions.text_prompt import Place, TextPrompt
from leadline.model import FrozenModel
from leadline.objective import CHUNK_ROWS, Objective
from leadline.scoring import level
from leadline.solvers.token_search import Problem


class TextPrior:
    """The model's own distribution over n tokens at the slot, n fixed: p(t_1 | prefix) p(t_2 | prefix, t_1) ...

    It sums to 1 over all sequences of n tokens, so no end of the text is part of it: how long a text is, the weights of
    the sizes pay for (docs/measurement.md section 1), and an end token would have that paid twice. Sequences that hold
    an end token, or that nobody can type, have their share of the mass and are never counted as successes.

    prefix: what stands before the slot whatever the item is (`item_free_prefix`). Where that is nothing, the start
            token: a probability needs something to come after
    Probabilities are those that the model computes in its own dtype: a certified bound wants it in float32.
    """

    name = "the model's own text at the slot"

    def __init__(self, model: FrozenModel, prefix: Sequence[int]) -> None:
        self.prefix = tuple(prefix) or (model.start_token,)
        self._model = model
        # all but the last token: the first token of the text is predicted from that one
        self._objective = Objective(Engine(model, self.prefix[:-1]))

    @torch.no_grad()
    def surprisal_bits(self, tokens: Tensor) -> Tensor:
        """(texts, n) tokens to (texts,) float64 -log2 of their probability."""
        rows = [Context(self.prefix, (), tuple(text)) for text in tokens.tolist()]
        bits = [
            self._objective.bits(chunk, self._nothing(len(chunk)))
            for chunk in (rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS))
        ]
        return torch.cat(bits).double().cpu() if bits else torch.zeros(0, dtype=torch.float64)

    def sample(self, count: int, size: int, draws: torch.Generator, begun: Sequence[int] = ()) -> list[tuple[int, ...]]:
        """`count` sequences of `size` tokens drawn from this prior, all of which begin with `begun`. ValueError where
        the window is too small.

        The engine stops a reply at an end token, and this prior goes on: such a row is continued from where it stopped.
        """
        if len(self.prefix) + size > self._model.window:
            raise ValueError(f"{size} tokens after {len(self.prefix)} do not fit into {self._model.window}")
        texts: list[tuple[int, ...]] = [tuple(begun)[:size]] * count
        while open_ := [row for row, text in enumerate(texts) if len(text) < size][:CHUNK_ROWS]:
            length = min(len(texts[row]) for row in open_)
            rows = [row for row in open_ if len(texts[row]) == length]
            contexts = [Context((*self.prefix, *texts[row]), (), ()) for row in rows]
            found = self._objective.engine.sample(contexts, self._nothing(len(rows)), size - length, draws)
            for row, more in zip(rows, found, strict=True):
                texts[row] += more
        return texts

    @torch.no_grad()
    def redrawn(self, tokens: Sequence[int], count: int, draws: torch.Generator) -> list[list[int]]:
        """So many texts with a span of tokens drawn anew from the prior given what stood before its place.

        In half of them one token, at a place of its own; in the others two to SPAN, at one place for all. Every second
        span stands in the old one's place; the others are put before that, and as many tokens are taken out at a place
        drawn uniformly, so that what stands between moves along.
        """
        row, single = [Context(self.prefix, (), tuple(tokens))], count - count // 2
        logits = self._objective.engine.target_logits(row, self._nothing(1)).logits
        places = torch.randint(len(tokens), (single,), generator=draws)
        ones = torch.multinomial(logits.float().softmax(-1).cpu()[places], 1, generator=draws).tolist()
        spans = list(zip(places.tolist(), ones, strict=True))
        length = min(int(torch.randint(2, SPAN + 1, (), generator=draws)), len(tokens))
        place = int(torch.randint(len(tokens) - length + 1, (), generator=draws))
        more = self.sample(count - single, place + length, draws, tokens[:place])
        spans += [(place, list(text[place:])) for text in more]
        texts = []
        for number, (place, span) in enumerate(spans):
            old = place if number % 2 == 0 else int(torch.randint(len(tokens) - len(span) + 1, (), generator=draws))
            kept = [token if not old <= at < old + len(span) else None for at, token in enumerate(tokens)]
            mixed = [*kept[:place], *span, *kept[place:]]
            texts.append([token for token in mixed if token is not None])
        return texts

    def _nothing(self, rows: int) -> EmbeddingEdit:
        return no_edit(rows, self._model.hidden_size, self._model.network.dtype, self._model.device)


SPAN = 4  # tokens of a text, at most, that are drawn anew together
PAD = -1  # stands where a text of a batch is shorter than the longest one


def padded(texts: Sequence[Sequence[int]]) -> Tensor:
    """(texts, longest) tokens, filled up with PAD on the right."""
    longest = max(len(text) for text in texts)
    return torch.tensor([[*text, *[PAD] * (longest - len(text))] for text in texts])


@final
class Ragged:
    """Texts of several lengths as `padded` stacks them; otherwise as `TextPrompt` writes them."""

    def __init__(self, model: FrozenModel) -> None:
        self._model = model

    def given(self, conditions: Sequence[tuple[float, ...]]) -> Ragged:
        """Itself: a text is the same for every context."""
        return self

    def edit(self, latents: Tensor) -> EmbeddingEdit:
        """(rows, longest) tokens as the edit that writes the embeddings of those that are no PAD."""
        lengths = (latents != PAD).sum(1).tolist()
        return EmbeddingEdit(self._model.embed(latents.clamp_min(0).to(self._model.device)), tuple(lengths))


def item_free_prefix(contexts: Sequence[Context]) -> tuple[int, ...]:
    """The tokens before the slot that all contexts start with: the template's, and none of an item's. To be taken over
    all items of a behaviour, since a few of them may share more by accident."""
    columns = zip(*(context.before for context in contexts), strict=False)
    return tuple(column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def in_place(place: Place, string: str) -> tuple[int, ...] | None:
    """The tokens that a string becomes where it is typed at the slot, which its neighbours have a say in; None where it
    moves theirs. Whether it becomes the same ones in every context, `TextPrompt.text` tells."""
    typed, start = place.typed(string), len(place.before)
    stop = len(typed) - len(place.after)
    if stop < start or typed[:start] != place.before or typed[stop:] != place.after:
        return None
    return typed[start:stop]


def token_gradient(objective: Objective, contexts: Sequence[Context]) -> Callable[[Tensor], Tensor]:
    """(n,) tokens to the (n, vocabulary) derivative of the mean loss in bits over the contexts with respect to the
    one-hot rows of the text: entry (i, v) is the slope towards token v's embedding at position i.

    The loss sees the text through its embeddings alone, so the derivative by these, times the matrix of embeddings as
    the first block receives them, is the derivative by the one-hot rows (Zou and others, 2307.15043, section 2.2).
    """
    model = objective.engine.model
    with torch.no_grad():
        table = model.embed(torch.arange(model.network.get_input_embeddings().weight.shape[0], device=model.device))

    def gradient(tokens: Tensor) -> Tensor:
        values = table[tokens.to(table.device)].float().requires_grad_()
        repeated = values.expand(len(contexts), *values.shape)
        loss = objective.bits(contexts, EmbeddingEdit(repeated, (len(tokens),) * len(contexts))).mean()
        (slope,) = torch.autograd.grad(loss, values)
        return slope @ table.float().T

    return gradient


def mean_losses(objective: Objective, contexts: Sequence[Context], prompt: Writes) -> Callable[[Tensor], Tensor]:
    """(texts, n) tokens to (texts,) float64 mean loss in bits a reply over the contexts, without gradients."""

    @torch.no_grad()
    def losses(candidates: Tensor) -> Tensor:
        return _each(candidates, contexts, prompt, objective.bits).mean(1)

    return losses


def scores(
    objective: Objective, contexts: Sequence[Context], prompt: Writes, threshold: float | None
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """(texts, n) tokens to (texts,) float64 loss in bits, and (texts,) level at the threshold, over the contexts.

    The loss is what the replies lack to be right, in the mean, near ties as rounding has them. Without a threshold
    nothing counts as right: the loss is the reply's cost, and no level is positive.
    """
    if threshold is None:
        costs = mean_losses(objective, contexts, prompt)
        return lambda candidates: (costs(candidates), torch.full((len(candidates),), -math.inf))

    def found(some: Sequence[Context], edit: Edit) -> Tensor:
        return parts.each(objective.engine, some, edit, lacking)

    def scored(candidates: Tensor) -> tuple[Tensor, Tensor]:
        missing, margins = _each(candidates, contexts, prompt, found).unbind(-1)
        return missing.mean(1), level(margins, threshold)

    return scored


def lacking(logits: TargetLogits) -> Tensor:
    """(rows, 2) bits by which a row's target tokens miss a lead of one bit over their best rival, summed, and margins.
    0 bits where every token leads by as much; one that leads by more makes up for no other, as it does in a cost."""
    missing = (1 - logits.leads / math.log(2)).clamp_min(0)
    bits = torch.zeros(logits.num_rows, device=missing.device).index_add(0, logits.rows, missing)
    return torch.stack([bits, logits.margins()], 1)


def _each(
    candidates: Tensor, contexts: Sequence[Context], prompt: Writes,
    read: Callable[[Sequence[Context], Edit], Tensor],
) -> Tensor:  # fmt: skip
    """(texts, contexts, ...) what is read of every text in every context, float64 on the CPU, in chunks of rows."""
    pairs = [(text, context) for text in range(len(candidates)) for context in contexts]
    found = []
    for start in range(0, len(pairs), CHUNK_ROWS):
        chunk = pairs[start : start + CHUNK_ROWS]
        edit = prompt.edit(candidates[[text for text, _ in chunk]])
        found.append(read([context for _, context in chunk], edit).double().cpu())
    return torch.stack(torch.cat(found).tensor_split(len(candidates)))


def text_problem(
    prompt: TextPrompt, prior: TextPrior, objective: Objective, contexts: Sequence[Context], screening: int,
    threshold: float | None,
) -> Problem:  # fmt: skip
    """What `token_search` is given to find a text that works on these contexts, so many of which it is screened on."""
    screened = scores(objective, contexts[:screening], prompt, threshold)
    return Problem(
        gradient=token_gradient(objective, contexts),
        scores=scores(objective, contexts, prompt, threshold),
        price_bits=prior.surprisal_bits,
        survives=lambda tokens: prompt.text(tokens) is not None,
        allowed=prompt.allowed,
        redrawn=prior.redrawn,
        screened=lambda texts: screened(texts)[0],
    )
