"""few_shot: k training items with the replies that the behaviour wants, written out as plain text at the slot.

A demonstration has the one form of `places.DEMONSTRATION`: "Q: ", the context as people read it, a line with "A: " and
the reply, a blank line. Texts of k demonstrations are drawn at random, judged on validation items, and certified as
other texts are (`text_stage`). Nothing here follows a gradient or words a question anew, so what it finds is a bound
and never the best demonstrations; and nothing is drawn blindly from its prior, so there is no lower bound.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from leadline import rows
from leadline.interventions.text_prompt import Place, TextPrompt
from leadline.items import Item
from leadline.model import FrozenModel
from leadline.places import DEMONSTRATION, places
from leadline.plan import TEXT_BUDGETS
from leadline.priors import generator
from leadline.slot import Renderer
from leadline.text_stage import PLACES, Curve, certify, judge, recorded, text_prior
from leadline.texts import Ragged, TextPrior, in_place, mean_losses, padded
from leadline.work import Work

FAMILY = "few_shot"
END = "\n\n"


@final
class BlankLines:
    """The model's own distribution over text at the slot that stops at its k-th blank line.

    Text is drawn token by token until what is written holds k blank lines (`stops`). No text that stops there begins
    another one, so the chain rule's probabilities of all of them sum to at most 1, whatever their lengths: the blank
    lines say where a text ends, and nothing else is paid for its length. k is the size, and its weight pays for it.
    Prices are those of `prior`, which is the same chain rule at a fixed length.
    """

    name = "the model's own text at the slot, up to as many blank lines as there are demonstrations"

    def __init__(self, prior: TextPrior) -> None:
        self._prior = prior

    def surprisal_bits(self, tokens: Tensor) -> Tensor:
        """(texts, n) tokens to (texts,) float64 -log2 of their probability, for texts that stop at their end."""
        return self._prior.surprisal_bits(tokens)


def few_shot(work: Work) -> None:
    """The whole family, for the behaviour at every size and for controls at the smallest."""
    if FAMILY not in work.spec.family:
        return
    prior = BlankLines(text_prior(work))
    everywhere = places(Renderer(work.model, work.behaviour.slot), work.behaviour)
    for task in work.tasks:
        sizes = work.spec.sizes_of(FAMILY)
        for size in sizes[:1] if task.name else sizes:
            curve = Curve(task.name, size, FAMILY)
            for seed in range(work.spec.seeds):
                _drawn(work, curve, seed, prior, everywhere)
            seeds = [recorded(work, _key(work, curve, seed), seed) for seed in range(work.spec.seeds)]
            certify(work, curve, prior, seeds)
            work.save_points()


def _drawn(work: Work, curve: Curve, seed: int, prior: BlankLines, everywhere: Sequence[Place]) -> None:
    """One seed's draws of demonstrations, judged on validation items. Where none holds there, the one of the least loss
    on a few of them is reported."""
    key = _key(work, curve, seed)
    if work.done(key):
        return
    began, task, count = time.monotonic(), work.task(curve.task), TEXT_BUDGETS[work.spec.scale].shown
    work.reporter.stage(f"demonstrations, {curve.label} seed {seed}")
    draws = generator("demonstrations", curve.label, seed)
    texts = demonstrated(work.model, everywhere, task.items["train"], curve.size, count, draws)
    if not texts:  # blank lines in every item, or characters that are no token of their own: an outcome
        work.write(key, {"points": [], "texts": [], "best": []})
        return
    contexts = task.contexts("validation")[: TEXT_BUDGETS[work.spec.scale].contexts]
    losses = mean_losses(work.objective, contexts, Ragged(work.model))(padded(texts))
    order = sorted(range(len(texts)), key=lambda place: float(losses[place].nan_to_num(nan=torch.inf)))
    # forward passes alone: half of what a training sequence costs, and the demonstrations' own tokens
    tokens = sum(map(len, texts)) * len(contexts)
    flops = work.flops(task, 0, len(texts) * len(contexts)) + 2.0 * work.model.num_parameters * tokens
    made = rows.Made(count, False, time.monotonic() - began, flops)
    judge(work, curve, seed, key, prior, [texts[place] for place in order], texts[order[0]], made)


def demonstrated(
    model: FrozenModel,
    everywhere: Sequence[Place],
    items: Sequence[Item],
    size: int,
    count: int,
    draws: torch.Generator,
) -> list[list[int]]:
    """Distinct texts out of `count` draws of `size` of the items, each drawn uniformly, one item more than once if so
    it falls out. Draws that could not be typed in every context are left out.

    items: of the training split;  draws: whose randomness is used
    """
    few, prompt = TextPrompt(model, everywhere[:: max(1, len(everywhere) // PLACES)]), TextPrompt(model, everywhere)
    shown = [DEMONSTRATION.format(item.prompt, item.target) for item in items]
    shown = [text for text in shown if text.find(END) == len(text) - len(END)]  # no blank line before its own
    texts: dict[tuple[int, ...], None] = {}
    if not shown:
        return []
    for _ in range(count):
        string = "".join(shown[place] for place in torch.randint(len(shown), (size,), generator=draws).tolist())
        tokens = in_place(everywhere[0], string)
        # a few contexts first: most of what cannot be typed in all of them cannot be typed in those
        if tokens and tokens not in texts and few.text(tokens) == string and prompt.text(tokens) == string:
            if not stops(model, tokens, size):
                raise RuntimeError(f"a text that does not stop at its blank line {size}: {string!r}")
            texts[tokens] = None
    return [list(text) for text in texts]


def stops(model: FrozenModel, tokens: Sequence[int], size: int) -> bool:
    """Whether text drawn token by token stops at the last of these: they hold `size` blank lines with the last token
    and fewer without it."""

    def lines(some: Sequence[int]) -> int:
        text: str = model.tokenizer.decode(list(some), clean_up_tokenization_spaces=False)
        return text.count(END)

    return lines(tokens) >= size > lines(tokens[:-1])


def _key(work: Work, curve: Curve, seed: int) -> str:
    return work.key("texts", f"{curve.label} seed {seed}")
