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
from leadline.solvers.token_search import CHEAPER, DEARER, Problem, State, TokenSearch, begin, search, swaps

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
    assert state.tokens == best
    assert state.loss + beta * state.price == pytest.approx(float(objectives.min()))


def test_the_price_changes_what_is_best() -> None:
    texts = [EVERY[(total(COSTS, EVERY) + beta * total(PRICES, EVERY)).argmin()].tolist() for beta in (0.0, 3.0)]
    assert texts[0] != texts[1]


def test_the_best_proposal_is_where_it_starts() -> None:
    proposals = EVERY[::100].tolist()
    wanted = min(proposals, key=lambda text: float(total(COSTS, torch.tensor(text))))
    state = begin(problem(), how(), [*proposals, proposals[0]])
    assert (state.tokens, state.best, state.scored) == (wanted, wanted, len(proposals))


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
    assert state.scored == len(paid) > 30
    assert all(sum(text) % 3 and 0 not in text for text in paid)
    with pytest.raises(ValueError, match="none of the 2 proposals"):
        begin(given, how(), [(3, 3, 3), (1, 1, 1)])
    with pytest.raises(ValueError, match="two allowed tokens"):
        begin(problem(allowed=[4]), how(), [(4, 4, 4)])


def test_it_stays_where_nothing_is_better() -> None:
    best = EVERY[total(COSTS, EVERY).argmin()].tolist()
    state = search(problem(), how(), 3, begin(problem(), how(), [best]))
    assert (state.tokens, state.best, state.step) == (best, best, 3)


def test_a_step_without_a_text_or_a_number_changes_nothing() -> None:
    state = begin(problem(), how(), [(1, 2, 3)])
    told = asdict(state)
    nowhere = search(problem(survives=lambda tokens: False), how(), 3, state)
    assert asdict(nowhere) == {**told, "step": 3}
    lost = search(problem(losses=lambda texts: torch.full((len(texts),), math.nan)), how(), 6, nowhere)
    assert (lost.tokens, lost.loss, lost.best) == ([1, 2, 3], told["loss"], [1, 2, 3])


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
    assert tuple(state.best) == min(prices, key=lambda text: prices[text])
    assert state.best_price == pytest.approx(min(prices.values()))
    nothing = problem(losses)
    assert search(nothing, how(), 12, begin(nothing, how(), [(0, 0, 0)])).kept == []


@pytest.mark.parametrize("beta", [0.001, 20.0])
def test_the_cheapest_text_that_works_is_found_whatever_beta_it_begins_with(beta: float) -> None:
    """With one beta all along, no price is asked for, or no loss: the text that works is dear, or none is found."""
    given, settings = problem(levels=works), how(beta, top_k=VOCABULARY, candidates=24, passed=24)
    state = search(given, settings, 60, begin(given, settings, [EVERY[total(COSTS, EVERY).argmin()].tolist()]))
    working = EVERY[total(COSTS, EVERY) < ENOUGH]
    assert state.best == working[total(PRICES, working).argmin()].tolist()


def test_beta_rises_while_the_text_works_and_falls_while_it_does_not() -> None:
    given, settings = problem(levels=works), how(0.5, top_k=VOCABULARY, candidates=24, passed=24)
    told: list[tuple[float, bool, bool]] = [(0.5, False, False)]
    begun = begin(given, settings, [(0, 0, 0)])
    search(given, settings, 30, begun, lambda s: told.append((s.beta, s.holds, bool(s.kept))))
    ratios = [(now[0] / last[0], *now[1:]) for last, now in itertools.pairwise(told)]
    assert {holds for _, holds, _ in ratios} == {True, False}
    for ratio, holds, kept in ratios:
        assert ratio == pytest.approx((DEARER if holds else CHEAPER) if kept else 1.0)


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
    assert (state.scored, state.screened) == (17, sum(map(len, seen)))


def test_a_stopped_search_goes_on_to_the_same_state() -> None:
    settings = how(0.5)
    told: list[State] = []
    whole = search(
        problem(levels=works),
        settings,
        9,
        begin(problem(levels=works), settings, [(0, 0, 0)]),
        lambda s: told.append(s),
    )
    assert len(told) == 9
    stopped = search(problem(levels=works), settings, 4, begin(problem(levels=works), settings, [(0, 0, 0)]))
    resumed = search(problem(levels=works), settings, 9, State(**json.loads(json.dumps(asdict(stopped)))))
    assert resumed == whole
    other = TokenSearch("another label", 0.5, 4, 8, 8)
    assert search(problem(levels=works), other, 9, begin(problem(levels=works), other, [(0, 0, 0)])) != whole
