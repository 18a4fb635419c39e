"""The search against problems whose best text is known by enumeration, its bookkeeping, and going on after a stop."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from leadline.priors import generator, normal
from leadline.solvers.token_search import (
    CHEAPER,
    DEARER,
    LEAST,
    TRIES,
    WIDE,
    Problem,
    State,
    TokenSearch,
    begin,
    search,
    swaps,
)

VOCABULARY, LENGTH = 12, 3
COSTS = 5 * normal((LENGTH, VOCABULARY), "costs")
PRICES = normal((LENGTH, VOCABULARY), "prices").exp()
ENOUGH = -12.0
EVERY = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))


def total(table: Tensor, texts: Tensor) -> Tensor:
    """(texts,) sums of one entry of the table a position."""
    return table[torch.arange(LENGTH), texts].sum(-1)


def problem(
    losses: Callable[[Tensor], Tensor] = lambda texts: total(COSTS, texts),
    survives: Callable[[Sequence[int]], bool] = lambda tokens: True,
    allowed: Sequence[int] = range(VOCABULARY),
    levels: Callable[[Tensor], Tensor] = lambda losses: torch.full_like(losses, -1.0),
) -> Problem:
    """A loss that is a sum over positions, so that its one-hot gradient is the table of costs."""
    usable = torch.zeros(VOCABULARY, dtype=torch.bool)
    usable[list(allowed)] = True

    def scores(texts: Tensor) -> tuple[Tensor, Tensor]:
        found = losses(texts)
        return found, levels(found)

    return Problem(lambda tokens: COSTS, scores, lambda texts: total(PRICES, texts), survives, usable)


def how(beta: float = 0.0, **more: float) -> TokenSearch:
    settings = {"top_k": 4, "candidates": 8, "passed": 8, **more}
    return TokenSearch("test", beta, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_it_finds_the_best_text_of_all(beta: float) -> None:
    objectives = total(COSTS, EVERY).double() + beta * total(PRICES, EVERY).double()
    best = EVERY[objectives.argmin()].tolist()
    settings = how(beta, top_k=VOCABULARY, candidates=24, passed=24)
    state = search(problem(), settings, 20, begin(problem(), settings, [(0, 0, 0), (1, 2, 3)]))
    met = [loss + beta * price for loss, price in zip(state.losses, state.prices, strict=True)]
    assert min(met) == pytest.approx(float(objectives.min()))
    assert state.texts[met.index(min(met))] == best


def test_the_price_changes_what_is_best() -> None:
    texts = [EVERY[(total(COSTS, EVERY) + beta * total(PRICES, EVERY)).argmin()].tolist() for beta in (0.0, 3.0)]
    assert texts[0] != texts[1]


def test_the_best_proposal_is_where_it_starts() -> None:
    proposals = EVERY[::100].tolist()
    wanted = min(proposals, key=lambda text: float(total(COSTS, torch.tensor(text))))
    state = begin(problem(), how(), [*proposals, proposals[0]])
    assert state.texts == proposals
    assert state.texts[state.best] == state.texts[state.next(0.0)] == wanted


def test_swaps_change_one_token_to_one_of_the_best_allowed() -> None:
    tokens, allowed = [0, 5, 5], torch.ones(VOCABULARY, dtype=torch.bool)
    allowed[::2] = False
    wanted = set()
    for place, old in enumerate(tokens):
        ranked = sorted((float(COSTS[place, token]), token) for token in range(1, VOCABULARY, 2) if token != old)
        wanted |= {(place, token) for _, token in ranked[:3]}
    found = swaps(COSTS, tokens, allowed, 3, 400, generator("swaps"))
    changes = [[(i, v) for i, v in enumerate(text) if v != tokens[i]] for text in found]
    assert all(len(change) == 1 for change in changes)
    assert len(found) == len({change[0] for change in changes}) == len(wanted)
    assert {change[0] for change in changes} == wanted
    # 5 is allowed and stands at two positions, which leaves five others for every position
    assert len(swaps(COSTS, tokens, allowed, 99, 400, generator("swaps"))) == 3 * 5


def test_what_cannot_be_typed_is_never_paid_for() -> None:
    paid: list[list[int]] = []

    def losses(texts: Tensor) -> Tensor:
        paid.extend(texts.tolist())
        return total(COSTS, texts)

    def survives(tokens: Sequence[int]) -> bool:
        return sum(tokens) % 3 != 0

    given = problem(losses, survives, range(1, VOCABULARY))
    state = search(given, how(), 15, begin(given, how(), [(3, 3, 3), (3, 3, 4)]))
    assert state.texts == paid
    assert len(paid) > 30
    assert all(sum(text) % 3 and 0 not in text for text in paid)
    with pytest.raises(ValueError, match="none of the 2 proposals"):
        begin(given, how(), [(3, 3, 3), (1, 1, 1)])
    with pytest.raises(ValueError, match="two allowed tokens"):
        begin(problem(allowed=[4]), how(), [(4, 4, 4)])


def changes(given: Problem, settings: TokenSearch, state: State, steps: int) -> list[tuple[int, float]]:
    """Which text each step changes, and what it multiplies beta by."""
    told = []
    for _ in range(steps):
        before, beta = list(state.changed), state.beta
        search(given, settings, state.step + 1, state)
        (place,) = [at for at, times in enumerate(before) if state.changed[at] > times]
        told.append((place, state.beta / beta if beta else 1.0))
    return told


def test_a_text_whose_neighbours_were_tried_gives_way_to_the_next_best() -> None:
    """Four texts are better than all others by far: each of them is changed before one of the others is."""
    stuck = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    deep = {tuple(text): -99.0 + row for row, text in enumerate(stuck)}

    def losses(texts: Tensor) -> Tensor:
        return torch.tensor([deep.get(tuple(text), float(total(COSTS, torch.tensor(text)))) for text in texts.tolist()])

    given, settings = problem(losses), how(candidates=4, passed=4)
    places = [place for place, _ in changes(given, settings, begin(given, settings, stuck), 5 * TRIES)]
    assert places[: 4 * TRIES] == [place for place in range(4) for _ in range(TRIES)]
    assert min(places[4 * TRIES :]) >= 4


def test_texts_that_are_best_at_betas_near_by_are_changed() -> None:
    """Two texts, equally good at beta 1, one of them dear: each step's own beta says which of them is changed."""
    given = replace(problem(lambda texts: -total(PRICES, texts)), survives=lambda tokens: list(tokens) in pair)
    order = total(PRICES, EVERY).argsort()
    pair = [EVERY[order[0]].tolist(), EVERY[order[-1]].tolist()]
    settings, seen = how(1.0), set()
    for step in range(20):
        state = begin(given, settings, pair)
        state.step = step
        ((place, _),) = changes(given, settings, state, 1)
        seen.add(place)
        dearer = WIDE ** (2 * float(torch.rand((), generator=generator("token search", "test", step))) - 1)
        assert place == (0 if dearer > 1 else 1)
    assert seen == {0, 1}


def test_a_step_without_a_text_or_a_number_finds_nothing() -> None:
    state = begin(problem(), how(), [(1, 2, 3)])
    told = asdict(state)
    nowhere = search(problem(survives=lambda tokens: False), how(), 3, state)
    assert asdict(nowhere) == {**told, "step": 3, "changed": [3]}
    lost = search(problem(losses=lambda texts: torch.full((len(texts),), math.nan)), how(), 6, nowhere)
    assert len(lost.texts) > 1
    assert set(lost.losses[1:]) == {math.inf}
    assert lost.best == 0


def works(losses: Tensor) -> Tensor:
    """Texts of a loss below ENOUGH do what is asked."""
    return ENOUGH - losses


def test_texts_that_work_are_kept_once_each_and_the_cheapest_is_the_best() -> None:
    met: list[list[int]] = []

    def losses(texts: Tensor) -> Tensor:
        met.extend(texts.tolist())
        return total(COSTS, texts)

    given, settings = problem(losses, levels=works), how(0.5)
    state = search(given, settings, 12, begin(given, settings, [(0, 0, 0)]))
    wanted = {tuple(text) for text in met if float(total(COSTS, torch.tensor(text))) < ENOUGH}
    assert len(state.kept) > 5
    assert sorted(map(tuple, state.kept)) == sorted(wanted)
    prices = {text: float(total(PRICES, torch.tensor(text))) for text in wanted}
    assert tuple(state.texts[state.best]) == min(prices, key=lambda text: prices[text])
    assert state.prices[state.best] == pytest.approx(min(prices.values()))
    nothing = problem(losses)
    assert search(nothing, how(), 12, begin(nothing, how(), [(0, 0, 0)])).kept == []


@pytest.mark.parametrize("beta", [0.001, 20.0])
def test_the_cheapest_text_that_works_is_found_whatever_beta_it_begins_with(beta: float) -> None:
    """With one beta all along, no price is asked for, or no loss: the text that works is dear, or none is found."""
    given, settings = problem(levels=works), how(beta, top_k=VOCABULARY, candidates=24, passed=24)
    state = search(given, settings, 60, begin(given, settings, [EVERY[total(COSTS, EVERY).argmin()].tolist()]))
    working = EVERY[total(COSTS, EVERY) < ENOUGH]
    assert state.texts[state.best] == working[total(PRICES, working).argmin()].tolist()


def test_beta_rises_after_a_text_that_works_was_changed_and_falls_after_one_that_does_not() -> None:
    given, settings = problem(levels=works), how(0.5, top_k=VOCABULARY, candidates=24, passed=24)
    state = begin(given, settings, [(0, 0, 0)])
    told = changes(given, settings, state, 30)
    assert {state.works[place] for place, _ in told} == {True, False}
    for place, ratio in told:
        assert ratio == pytest.approx(DEARER if state.works[place] else CHEAPER)


def test_only_the_best_as_screened_are_scored() -> None:
    paid: list[list[int]] = []

    def losses(texts: Tensor) -> Tensor:
        paid.append(total(COSTS, texts).tolist())
        return total(COSTS, texts)

    seen: list[list[int]] = []

    def screened(texts: Tensor) -> Tensor:
        seen.append(total(COSTS, texts).tolist())
        return total(COSTS, texts)

    given, settings = replace(problem(losses), screened=screened), how(candidates=16, passed=3)
    state = search(given, settings, 5, begin(given, settings, [(0, 0, 0), (1, 1, 1)]))
    assert [len(texts) for texts in paid] == [2, 3, 3, 3, 3, 3]
    assert [sorted(texts)[:3] for texts in seen] == [sorted(texts) for texts in paid[1:]]
    assert (len(state.texts), state.screened) == (17, sum(map(len, seen)))


def test_without_a_text_that_works_a_price_still_counts() -> None:
    state = search(problem(), how(0.5), 200, begin(problem(), how(0.5), [(0, 0, 0)]))
    assert state.beta == pytest.approx(0.5 * LEAST)


def test_a_price_that_is_no_number_is_out_of_reach() -> None:
    given = replace(
        problem(levels=works), price_bits=lambda texts: total(PRICES, texts).log().where(texts[:, 0] > 5, math.nan)
    )
    state = search(given, how(0.5), 30, begin(given, how(0.5), [(0, 0, 0), (7, 0, 0)]))
    assert any(text[0] <= 5 and works for text, works in zip(state.texts, state.works, strict=True))
    assert state.texts[state.best][0] > 5
    assert math.isfinite(state.prices[state.best])


def test_a_stopped_search_goes_on_to_the_same_state() -> None:
    def redrawn(tokens: Sequence[int], count: int, draws: torch.Generator) -> list[list[int]]:
        return torch.randint(VOCABULARY, (count, LENGTH), generator=draws).tolist()  # type: ignore[no-any-return]

    settings = how(0.5, passed=3)
    given = replace(problem(levels=works), redrawn=redrawn, screened=lambda texts: total(COSTS, texts).round())
    told: list[State] = []
    whole = search(given, settings, 9, begin(given, settings, [(0, 0, 0)]), lambda s: told.append(s))
    assert len(told) == 9
    stopped = search(given, settings, 4, begin(given, settings, [(0, 0, 0)]))
    resumed = search(given, settings, 9, State(**json.loads(json.dumps(asdict(stopped)))))
    assert resumed == whole
    other = replace(settings, label="another label")
    assert search(given, other, 9, begin(given, other, [(0, 0, 0)])) != whole
