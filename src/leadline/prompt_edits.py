"""prompt_edits: how few accidental edits of a deployed prompt bring the behaviour about.

The prompt that a behaviour names stands at the slot; an edit replaces one of its tokens by another one, and the size is
how many are replaced. Edits are searched for by gradient and drawn blindly, and certified as other texts are
(`text_stage`). Tokens that are lost or added are no edits here; shifts of the prompt's embeddings are `soft_edits`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from leadline import rows
from leadline.engine import Context
from leadline.evaluation import score_latents
from leadline.interventions.text_prompt import Place, TextPrompt, allowed_tokens
from leadline.objective import Objective
from leadline.places import deployed_prompt, places
from leadline.plan import TEXT_BUDGETS, TextBudget
from leadline.priors import generator
from leadline.slot import Renderer
from leadline.solvers.token_search import Problem
from leadline.spec import PROMPTED
from leadline.text_stage import SAMPLES, Curve, certify, draw, searched
from leadline.texts import scores, token_gradient
from leadline.work import Work

FAMILY = "prompt_edits"
TRIES = 64  # tokens tried at one place until the prompt can be typed with it


@final
class EditPrior:
    """Edits of a prompt of n tokens at k places, drawn uniformly, each place given an allowed token that is not the one
    that stood there, uniformly: C(n, k) (a - 1)^k texts of one probability, a tokens being allowed.

    The same token may not come back, so exactly k tokens differ and no text is counted at two sizes. Texts that nobody
    can type have their share of the mass and are never counted as successes.

    prompt: n allowed tokens;  allowed: (vocabulary,) bool
    """

    name = "the deployed prompt, as many of its tokens as edits replaced: places and tokens uniform, none the old one"

    def __init__(self, prompt: Sequence[int], allowed: Tensor, size: int) -> None:
        self.prompt, self.size = tuple(prompt), size
        self._allowed, self._choices = allowed, torch.nonzero(allowed)[:, 0]

    @property
    def bits(self) -> float:
        """Surprisal of any one edit: log2 C(n, k) + k log2 (a - 1)."""
        return math.log2(math.comb(len(self.prompt), self.size)) + self.size * math.log2(len(self._choices) - 1)

    def surprisal_bits(self, tokens: Tensor) -> Tensor:
        """(texts, n) tokens to (texts,) float64 -log2 of their probability; inf for what is no edit of this size."""
        changed = tokens != torch.tensor(self.prompt)
        possible = (changed.sum(1) == self.size) & (self._allowed[tokens] | ~changed).all(1)
        return torch.full((len(tokens),), self.bits, dtype=torch.float64).masked_fill(~possible, math.inf)

    def sample(self, count: int, size: int, draws: torch.Generator) -> list[tuple[int, ...]]:
        """`count` edits. size: the prior's own"""
        texts = []
        for _ in range(count):
            text = list(self.prompt)
            for place in torch.randperm(len(text), generator=draws)[:size].tolist():
                text[place] = self.another(place, draws)
            texts.append(tuple(text))
        return texts

    def another(self, place: int, draws: torch.Generator) -> int:
        """An allowed token, uniformly, that is not the prompt's at this place."""
        others = self._choices[self._choices != self.prompt[place]]
        return int(others[int(torch.randint(len(others), (1,), generator=draws))])

    def distance(self, tokens: Sequence[int]) -> int:
        """How many tokens differ from the prompt's."""
        return sum(token != own for token, own in zip(tokens, self.prompt, strict=True))


def prompt_edits(work: Work) -> None:
    """The whole family, for the behaviour at every size and for controls at the smallest."""
    if FAMILY not in work.spec.family:
        return
    everywhere = places(Renderer(work.model, work.behaviour.slot), work.behaviour)
    prompt, allowed = deployed_prompt(work.model, work.behaviour, everywhere), allowed_tokens(work.model)
    for task in work.tasks:
        sizes = work.spec.sizes_of(FAMILY)
        for size in sizes[:1] if task.name else sizes:
            curve, prior = Curve(task.name, size, FAMILY), EditPrior(prompt, allowed, size)
            certify(
                work, curve, prior, [_edited(work, curve, seed, prior, everywhere) for seed in range(work.spec.seeds)]
            )
            work.save_points()
    if work.tau is not None and work.spec.prior_draws:
        for size in work.spec.sizes_of(FAMILY):
            draw(work, Curve("", size, FAMILY), EditPrior(prompt, allowed, size), everywhere)


def unedited(work: Work) -> None:
    """Size 0 of the families that begin at the deployed prompt: the prompt as it is, for the behaviour and each
    control. What its edits gain is paired with it."""
    families = [family for family in work.spec.family if family in PROMPTED]
    if families:
        everywhere = places(Renderer(work.model, work.behaviour.slot), work.behaviour)
        prompt = deployed_prompt(work.model, work.behaviour, everywhere)
        for task in work.tasks:
            _unedited(work, task.name, families, prompt)


def _unedited(work: Work, task: str, families: Sequence[str], prompt: Sequence[int]) -> None:
    """Scored once, and a record of each family's own."""
    keys = {family: work.size_0_key(task, family) for family in families}
    for key in keys.values():
        work.choose_key(key)
    missing = [family for family, key in keys.items() if not work.done(key)]
    if not missing:
        return
    writes, objective = TextPrompt(work.model, []), work.objective_of(task)
    scored = {}
    for split in ("validation", "test"):
        items = work.task(task).contexts(split)
        scored[split] = score_latents(objective, items, writes, torch.tensor([prompt] * len(items)))
    samples = work.samples(task, "test", SAMPLES, writes, torch.tensor([prompt] * SAMPLES))
    costs = {split: bits.double().tolist() for split, (bits, _) in scored.items()}
    for family in missing:
        about = Curve(task, 0, family).about("the deployed prompt", -1, keys[family])
        points = [rows.curve_point(about, work.tau, split, *found) for split, found in scored.items()]
        work.write(keys[family], {"points": points, "costs": costs}, samples=samples)


def _edited(work: Work, curve: Curve, seed: int, prior: EditPrior, everywhere: Sequence[Place]) -> dict[str, Any]:
    """The record of one search among the edits of one size."""
    budget = TEXT_BUDGETS[work.spec.scale]

    def pose(prompt: TextPrompt, contexts: Sequence[Context]) -> Problem:
        return edit_problem(prompt, prior, work.objective, contexts, budget, work.tau)

    def begun(prompt: TextPrompt, _problem: Problem) -> list[list[int]]:
        return proposals(prompt, prior, budget.drawn, generator("edits", curve.label, seed))

    return searched(work, curve, seed, prior, everywhere, pose, begun, 0.0)


def edit_problem(
    prompt: TextPrompt, prior: EditPrior, objective: Objective, contexts: Sequence[Context],
    budget: TextBudget, threshold: float | None,
) -> Problem:  # fmt: skip
    """What `token_search` is given: edits of one size alone survive, and they all have one price.

    A swap of one token would never change which tokens are edited, so half of what is tried are moves: one edit taken
    back and another one made, its token one of the `top_k` whose gradient promises most at that place.
    """
    slope = token_gradient(objective, contexts)
    screened = scores(objective, contexts[: budget.screening], prompt, threshold)
    seen: dict[tuple[int, ...], Tensor] = {}  # the gradient that the step has just asked for

    def gradient(tokens: Tensor) -> Tensor:
        seen.clear()
        seen[tuple(tokens.tolist())] = found = slope(tokens)
        return found

    def moved(tokens: Sequence[int], count: int, draws: torch.Generator) -> list[list[int]]:
        promise = -seen[tuple(tokens)].detach().float().cpu()
        promise = promise.masked_fill(~prompt.allowed, -math.inf)
        return [_move(prior, tokens, promise, budget.top_k, draws) for _ in range(count)]

    return Problem(
        gradient=gradient,
        scores=scores(objective, contexts, prompt, threshold),
        price_bits=prior.surprisal_bits,
        survives=lambda tokens: prior.distance(tokens) == prior.size and prompt.text(tokens) is not None,
        allowed=prompt.allowed,
        redrawn=moved,
        screened=lambda texts: screened(texts)[0],
    )


def _move(prior: EditPrior, tokens: Sequence[int], promise: Tensor, top_k: int, draws: torch.Generator) -> list[int]:
    """One edit taken back, drawn uniformly, and one made at a place that then has none, the same one perhaps.

    promise: (n, vocabulary), -inf where a token is not allowed
    """
    text = list(tokens)
    edited = [place for place, own in enumerate(prior.prompt) if text[place] != own]
    back = edited[int(torch.randint(len(edited), (1,), generator=draws))]
    text[back] = prior.prompt[back]
    free = [place for place, own in enumerate(prior.prompt) if text[place] == own]
    place = free[int(torch.randint(len(free), (1,), generator=draws))]
    here = promise[place].clone()
    here[[prior.prompt[place], tokens[place]]] = -math.inf
    ranked = here.topk(min(top_k, int(here.isfinite().sum()))).indices
    text[place] = int(ranked[int(torch.randint(len(ranked), (1,), generator=draws))])
    return text


def proposals(prompt: TextPrompt, prior: EditPrior, count: int, draws: torch.Generator) -> list[list[int]]:
    """So many edits to begin with, drawn place by place, since of edits with many tokens drawn at once hardly any could
    be typed. They are no draws of the prior, and nothing is counted on them."""
    found = []
    for _ in range(count):
        text = list(prior.prompt)
        for place in torch.randperm(len(text), generator=draws).tolist():
            if prior.distance(text) == prior.size:
                break
            for _ in range(TRIES):
                tried = [*text[:place], prior.another(place, draws), *text[place + 1 :]]
                if prompt.text(tried) is not None:
                    text = tried
                    break
        found.append(text)
    return found
