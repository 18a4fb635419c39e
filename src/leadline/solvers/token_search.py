"""token_search: texts that lower a loss, by swapping one token at a time where the gradient promises most.

Greedy coordinate gradient (GCG: Zou and others, 2307.15043, algorithm 1). The gradient with respect to the one-hot
rows of the text ranks the tokens of every position; single swaps out of the best ranks are drawn, scored by forward
passes, and the best of them is the next text, better than the last one or not. Beyond the paper, a text has a price
(its surprisal under a prior) that is added to the loss, the best text so far is remembered, and what could not be typed
is never paid for. Knows closures over tokens, and no model, slot or prior. What it finds is a text and no bound.
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
    losses:     (texts, n) tokens to (texts,) mean loss in bits a reply
    price_bits: (texts, n) tokens to (texts,) surprisal under the prior, in bits
    survives:   whether n tokens are a text that can be typed
    allowed:    (vocabulary,) bool, tokens that may be swapped in
    redrawn:    n tokens, a count and a generator to so many texts with one token drawn anew from the prior: the
                gradient knows what works, the prior what is likely, and swaps come from both. None: from the gradient
    """

    gradient: Callable[[Tensor], Tensor]
    losses: Callable[[Tensor], Tensor]
    price_bits: Callable[[Tensor], Tensor]
    survives: Callable[[Sequence[int]], bool]
    allowed: Tensor
    redrawn: Callable[[Sequence[int], int, torch.Generator], list[list[int]]] | None = None


@dataclass(frozen=True)
class TokenSearch:
    """How it is searched.

    label:      says all that tells this search from others; randomness hashes it
    beta:       bits of loss that a bit of price is worth: the objective is loss + beta * price. At 0 no price is asked
                for. Below `keep_bits` a lower loss is worth nothing, so that a text that works goes on to be cheaper
    top_k:      tokens a position that a swap is drawn from
    candidates: swaps drawn a step; doubles and those that do not survive are dropped
    keep_bits:  texts of at most this loss are kept, to be scored as successes afterwards; -inf keeps none. Where every
                loss is below 1 bit, each target token has a probability above 1/2 and greedy decoding writes it
    """

    label: str
    beta: float
    top_k: int
    candidates: int
    keep_bits: float = -math.inf


@dataclass
class State:
    """All that a search needs to go on after it was stopped; plain data.

    step:           steps done
    tokens:         the text that the next step swaps in, and its objective in bits
    best:           the text of the lowest objective so far, and that objective in bits
    scored:         texts whose loss was computed so far
    kept:           distinct texts of at most `keep_bits`, in the order they were met
    """

    step: int
    tokens: list[int]
    objective: float
    best: list[int]
    best_objective: float
    scored: int
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
    state = State(0, texts[0], math.inf, texts[0], math.inf, 0, [])
    _move(problem, how, state, texts)
    return state


def search(
    problem: Problem,
    how: TokenSearch,
    steps: int,
    state: State,
    after_step: Callable[[State], None] = lambda state: None,
) -> State:
    """Runs a search to `steps`, changing `state` in place; calls `after_step` after each, to save and to report.

    A step of which no swap survives, or none has a finite objective, leaves the text where it is.
    """
    while state.step < steps:
        gradient = problem.gradient(torch.tensor(state.tokens))
        draws = generator("token search", how.label, state.step)
        half = how.candidates if problem.redrawn is None else math.ceil(how.candidates / 2)
        drawn = swaps(gradient, state.tokens, problem.allowed, how.top_k, half, draws)
        if problem.redrawn is not None:
            more = problem.redrawn(state.tokens, how.candidates - half, draws)
            drawn += [text for text in more if text not in drawn and text != state.tokens]
        _move(problem, how, state, [text for text in drawn if problem.survives(text)])
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


def _move(problem: Problem, how: TokenSearch, state: State, texts: list[list[int]]) -> None:
    """Scores the texts, moves to the best of them, and remembers what is to be remembered."""
    if not texts:
        return
    candidates = torch.tensor(texts)
    losses = problem.losses(candidates).double().cpu()
    objectives = losses.clamp_min(how.keep_bits)
    if how.beta > 0.0:
        objectives = objectives + how.beta * problem.price_bits(candidates).double().cpu()
    state.scored += len(texts)
    for text, loss in zip(texts, losses.tolist(), strict=True):
        if loss <= how.keep_bits and text not in state.kept:
            state.kept.append(text)
    objectives = torch.nan_to_num(objectives, nan=math.inf, posinf=math.inf)
    lowest = int(objectives.argmin())
    found = float(objectives[lowest])
    if math.isinf(found):
        return
    state.tokens, state.objective = texts[lowest], found
    if found < state.best_objective:
        state.best, state.best_objective = texts[lowest], found
