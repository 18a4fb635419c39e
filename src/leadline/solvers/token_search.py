"""token_search: texts that do what is asked, and then cheaper ones, by changing one place at a time.

Greedy coordinate gradient (GCG: Zou and others, 2307.15043, algorithm 1). The gradient with respect to the one-hot
rows of the text ranks the tokens of every position; single swaps out of the best ranks are drawn, scored by forward
passes, and the best of them is the next text. Beyond the paper: it has to be better than the last one; a text has a
price (its surprisal under a prior) that is added to the loss, times a beta that rises while the text does what is asked
and falls while it does not, so that the search stays where texts just work; half of what is tried comes from the prior,
with tokens moved along; candidates are screened on a few contexts first; and what could not be typed is never paid for.
Knows closures over tokens, and no model, slot or prior. What it finds is a text and no bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


# What beta is multiplied by after a step that ends at a text that works, and after one that does not.
DEARER, CHEAPER = 1.2, 1 / 1.03


@dataclass(frozen=True)
class TokenSearch:
    """How it is searched.

    label:      says all that tells this search from others; randomness hashes it
    beta:       bits of loss that a bit of price is worth at first: the objective is loss + beta * price. It stays as it
                is until a text does what is asked. At 0 no price is asked for
    top_k:      tokens a position that a swap is drawn from
    candidates: texts tried a step; doubles and those that do not survive are dropped
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

    step:       steps done
    beta:       of the next step
    tokens:     the text that the next step changes, its loss in bits, its price in bits, and whether its level was
                positive
    best:       the cheapest text so far that did what is asked; before there is one, the text of the lowest loss
    scored:     texts that were scored so far;  screened: that were screened
    kept:       distinct texts of a positive level, in the order they were met
    """

    step: int
    beta: float
    tokens: list[int]
    loss: float
    price: float
    holds: bool
    best: list[int]
    best_loss: float
    best_price: float
    scored: int
    screened: int
    kept: list[list[int]]


def begin(problem: Problem, how: TokenSearch, proposals: Sequence[Sequence[int]]) -> State:
    """The state before the first step: the best of the proposals, which all have one length.

    ValueError: no proposal is a text, or fewer than two tokens are allowed.
    """
    if int(problem.allowed.sum()) < 2:
        raise ValueError("a swap needs at least two allowed tokens")
    texts = [list(text) for text in dict.fromkeys(map(tuple, proposals)) if problem.survives(text)]
    if not texts:
        raise ValueError(f"none of the {len(proposals)} proposals is a text that can be typed at the slot")
    first, inf = texts[0], math.inf
    state = State(0, how.beta, first, inf, inf, False, first, inf, inf, 0, 0, [])
    _move(problem, state, texts, len(texts))
    return state


def search(
    problem: Problem,
    how: TokenSearch,
    steps: int,
    state: State,
    after_step: Callable[[State], None] = lambda state: None,
) -> State:
    """Runs a search to `steps`, changing `state` in place; calls `after_step` after each, to save and to report.

    A step none of whose candidates survives, or is better than the text it changes, leaves that where it is.
    """
    while state.step < steps:
        gradient = problem.gradient(torch.tensor(state.tokens))
        draws = generator("token search", how.label, state.step)
        half = how.candidates if problem.redrawn is None else math.ceil(how.candidates / 2)
        drawn = swaps(gradient, state.tokens, problem.allowed, how.top_k, half, draws)
        if problem.redrawn is not None:
            drawn += problem.redrawn(state.tokens, how.candidates - half, draws)
        texts = [list(text) for text in dict.fromkeys(map(tuple, drawn)) if list(text) != state.tokens]
        texts = [text for text in texts if problem.survives(text)]
        _move(problem, state, texts, how.passed)
        if state.kept:
            state.beta *= DEARER if state.holds else CHEAPER
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


def _move(problem: Problem, state: State, texts: list[list[int]], most: int) -> None:
    """Scores at most so many of the texts, moves to the best of them, and remembers what is to be remembered."""
    if not texts:
        return
    beta = state.beta
    candidates = torch.tensor(texts)
    prices = problem.price_bits(candidates).double().cpu()
    if problem.screened is not None and len(texts) > most:
        state.screened += len(texts)
        coarse = _number(problem.screened(candidates)) + _priced(beta, prices)
        passed = coarse.argsort(stable=True)[:most]
        candidates, prices = candidates[passed], prices[passed]
    losses, levels = problem.scores(candidates)
    losses = _number(losses)
    state.scored += len(candidates)
    objectives = losses + _priced(beta, prices)
    lowest = int(objectives.argmin())
    met = list(zip(candidates.tolist(), losses.tolist(), prices.tolist(), (levels > 0).tolist(), strict=True))
    for text, loss, price, holds in met:
        if holds and text not in state.kept:
            better = not state.kept or price < state.best_price
            state.kept.append(text)
        else:
            better = not state.kept and loss < state.best_loss
        if better:
            state.best, state.best_loss, state.best_price = text, loss, price
    if float(objectives[lowest]) < state.loss + (beta * state.price if beta > 0.0 else 0.0):
        state.tokens, state.loss, state.price, state.holds = met[lowest]


def _number(found: Tensor) -> Tensor:
    """Float64 on the CPU; what is no number is out of reach."""
    return torch.nan_to_num(found.double().cpu(), nan=math.inf, posinf=math.inf)


def _priced(beta: float, prices: Tensor) -> Tensor:
    """What the prices are worth; a price out of reach times no beta is nothing."""
    return beta * prices if beta > 0.0 else torch.zeros_like(prices)
