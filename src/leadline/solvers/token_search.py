"""token_search: texts that do what is asked, and then cheaper ones, by changing the most promising text met so far.

The changes are those of greedy coordinate gradient (GCG: Zou and others, 2307.15043, algorithm 1): the gradient with
respect to the one-hot rows of a text ranks the tokens of every position, single swaps out of the best ranks are drawn,
and scored by forward passes. Beyond the paper: the search is best-first, so that a text that was changed twice gives
way to the next best of all that were ever scored, and no minimum of single swaps holds it; a text has a price (its
surprisal under a prior) that is added to the loss, times a beta that keeps about one in six of the texts it changes
working, so that it stays where texts just work; half of what is tried comes from the prior; candidates are screened on
a few contexts first; and what could not be typed is never paid for. Knows closures over tokens, and no model, slot or
prior. What it finds is a text and no bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leadline.priors import generator


@dataclass(frozen=True)
class Problem:
    """What is searched for, as functions of tokens (int64, CPU).

    gradient:   (n,) tokens to the (n, vocabulary) derivative of the mean loss in bits by their one-hot rows
    scores:     (texts, n) tokens to (texts,) mean loss in bits a reply, and (texts,) levels: a text with a positive one
                does what is asked on the contexts that it was scored on
    price_bits: (texts, n) tokens to (texts,) surprisal under the prior, in bits
    survives:   whether n tokens are a text that can be typed
    allowed:    (vocabulary,) bool, tokens that may be swapped in
    redrawn:    n tokens, a count and a generator to so many texts near by that come from the prior: the gradient knows
                what works, the prior what is likely, and candidates come from both. None: from the gradient
    screened:   (texts, n) tokens to (texts,) losses that are cheaper and coarser. None: all candidates are scored
    """

    gradient: Callable[[Tensor], Tensor]
    scores: Callable[[Tensor], tuple[Tensor, Tensor]]
    price_bits: Callable[[Tensor], Tensor]
    survives: Callable[[Sequence[int]], bool]
    allowed: Tensor
    redrawn: Callable[[Sequence[int], int, torch.Generator], list[list[int]]] | None = None
    screened: Callable[[Tensor], Tensor] | None = None


# What beta is multiplied by after a text that works was changed, and after one that does not.
DEARER, CHEAPER = 1.3, 1 / 1.05
LEAST = 0.01  # the lowest that beta becomes, as a share of the first one: with no text that works, a price still counts
WIDE = 4.0  # how far from beta a step's own one may lie, as a factor, so that texts good for other prices are changed
TRIES = 2  # times that a text is changed before all others have been


@dataclass(frozen=True)
class TokenSearch:
    """How it is searched.

    label:      says all that tells this search from others; randomness hashes it
    beta:       bits of loss that a bit of price is worth at first: the objective is loss + beta * price. It falls while
                texts do not do what is asked, to LEAST of this at the lowest. At 0 no price is asked for
    top_k:      tokens a position that a swap is drawn from
    candidates: texts tried a step; doubles, those scored before and those that do not survive are dropped
    passed:     of those, at most so many are scored, the best as they are screened
    """

    label: str
    beta: float
    top_k: int
    candidates: int
    passed: int


@dataclass
class State:
    """All that a search needs to go on after it was stopped; plain data.

    step:     steps done;  beta: of the next one;  screened: texts that were screened so far
    texts:    all that were scored, each once, in the order they were met
    losses, prices, works, changed: of each, its loss and its price in bits, whether its level was positive, and in how
              many steps it was the text to change
    """

    step: int
    beta: float
    screened: int = 0
    texts: list[list[int]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    prices: list[float] = field(default_factory=list)
    works: list[bool] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)

    @property
    def best(self) -> int:
        """Place of the cheapest text that does what is asked; before there is one, of that of the lowest loss."""
        found = [place for place, works in enumerate(self.works) if works]
        if found:
            return min(found, key=self.prices.__getitem__)
        return min(range(len(self.texts)), key=self.losses.__getitem__)

    @property
    def kept(self) -> list[list[int]]:
        """The texts that do what is asked."""
        return [text for text, works in zip(self.texts, self.works, strict=True) if works]

    def next(self, beta: float) -> int:
        """Place of the text that a step at this beta changes: the best of those changed fewer than TRIES times; once
        there is none, of those changed fewer than 2 TRIES times, and so on."""

        def rank(place: int) -> tuple[int, float]:
            return self.changed[place] // TRIES, self.losses[place] + _priced(beta, self.prices[place])

        return min(range(len(self.texts)), key=rank)


def begin(problem: Problem, how: TokenSearch, proposals: Sequence[Sequence[int]]) -> State:
    """The state before the first step: all proposals, which have one length, scored.

    ValueError: no proposal is a text, or fewer than two tokens are allowed.
    """
    if int(problem.allowed.sum()) < 2:
        raise ValueError("a swap needs at least two allowed tokens")
    state = State(0, how.beta)
    _score(problem, state, proposals, len(proposals), how.beta)
    if not state.texts:
        raise ValueError(f"none of the {len(proposals)} proposals is a text that can be typed at the slot")
    return state


def search(
    problem: Problem,
    how: TokenSearch,
    steps: int,
    state: State,
    after_step: Callable[[State], None] = lambda state: None,
) -> State:
    """Runs a search to `steps`, changing `state` in place; calls `after_step` after each, to save and to report."""
    while state.step < steps:
        draws = generator("token search", how.label, state.step)
        beta = state.beta * WIDE ** (2 * float(torch.rand((), generator=draws)) - 1)
        place = state.next(beta)
        tokens = state.texts[place]
        gradient = problem.gradient(torch.tensor(tokens))
        half = how.candidates if problem.redrawn is None else math.ceil(how.candidates / 2)
        drawn = swaps(gradient, tokens, problem.allowed, how.top_k, half, draws)
        if problem.redrawn is not None:
            drawn += problem.redrawn(tokens, how.candidates - half, draws)
        _score(problem, state, drawn, how.passed, beta)
        state.changed[place] += 1
        state.beta = max(LEAST * how.beta, state.beta * (DEARER if state.works[place] else CHEAPER))
        state.step += 1
        after_step(state)
    return state


def swaps(
    gradient: Tensor, tokens: Sequence[int], allowed: Tensor, top_k: int, count: int, draws: torch.Generator
) -> list[list[int]]:
    """Up to `count` distinct texts that differ from `tokens` in one token.

    gradient: (n, vocabulary); the position is uniform, the new token uniform among the `top_k` allowed ones whose
    derivative is lowest there. The old token is none of them.
    """
    place = torch.arange(len(tokens))
    usable = allowed.repeat(len(tokens), 1)
    usable[place, torch.tensor(tokens)] = False
    ranks = min(top_k, int(usable.sum(1).min()))
    promise = -gradient.detach().float().cpu()
    ranked = promise.masked_fill(~usable, -math.inf).topk(ranks, dim=1).indices
    where = torch.randint(len(tokens), (count,), generator=draws).tolist()
    which = torch.randint(ranks, (count,), generator=draws).tolist()
    texts: dict[tuple[int, ...], None] = {}
    for position, rank in zip(where, which, strict=True):
        texts[(*tokens[:position], int(ranked[position, rank]), *tokens[position + 1 :])] = None
    return [list(text) for text in texts]


def _score(problem: Problem, state: State, drawn: Sequence[Sequence[int]], most: int, beta: float) -> None:
    """Scores at most so many of the texts, the best as they are screened, and adds them to those met."""
    met = set(map(tuple, state.texts))
    texts = [list(text) for text in dict.fromkeys(map(tuple, drawn)) if text not in met and problem.survives(text)]
    if not texts:
        return
    candidates, places = torch.tensor(texts), list(range(len(texts)))
    prices = _number(problem.price_bits(candidates))
    if problem.screened is not None and len(texts) > most:
        state.screened += len(texts)
        coarse = _number(problem.screened(candidates))
        places = sorted(places, key=lambda place: coarse[place] + _priced(beta, prices[place]))[:most]
    losses, levels = problem.scores(candidates[places])
    state.texts += [texts[place] for place in places]
    state.losses += _number(losses)
    state.prices += [prices[place] for place in places]
    state.works += (levels > 0).tolist()
    state.changed += [0] * len(places)


def _number(found: Tensor) -> list[float]:
    """What is no number is out of reach."""
    numbers: list[float] = torch.nan_to_num(found.double().cpu(), nan=math.inf, posinf=math.inf).tolist()
    return numbers


def _priced(beta: float, price: float) -> float:
    """What a price is worth; one out of reach times no beta is nothing."""
    return beta * price if beta > 0.0 else 0.0
