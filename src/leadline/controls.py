"""Controls: what stands beside a behaviour and means nothing to it, as tokens (docs/measurement.md section 5).

Everything random here hashes its own labels, so the same behaviour gets the same controls.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import pairwise
from typing import Any

from leadline.behaviour import Behaviour
from leadline.edits import no_edit
from leadline.engine import Context, Engine
from leadline.estimators.prefill import prefill_bits
from leadline.model import FrozenModel
from leadline.objective import objective_for
from leadline.priors import seed_of
from leadline.slot import Renderer

# With n controls the first n kinds are taken, then the list starts again with another seed.
CONTROL_KINDS = ("matched", "uniform", "phrase", "shuffled")
MATCH_TOLERANCE = 0.1
ROUGH_CONTEXTS = 8
SHUFFLES = 200  # orders tried before a reply is said to have no other one


def control(
    kind: str,
    seed: int,
    taken: Sequence[tuple[int, ...]],
    room: int,
    contexts: Sequence[Context],
    model: FrozenModel,
    renderer: Renderer,
    behaviour: Behaviour,
) -> tuple[str, tuple[int, ...]]:
    """One control of a constant reply (docs/measurement.md section 5): the kind it turned out to be, and its tokens.

    taken: the reply itself, and the controls made before. None of them is made again, nor, where the reply is repeated,
           the same words begun elsewhere. Where no order of the tokens and no phrase is left it becomes a uniform
           control, and a matched one is called nearest where no phrase is within 10% of the direct cost.
    room:  most tokens that a control may have
    """
    rng = random.Random(seed_of("control", kind, seed, taken[0]))
    repeat = behaviour.reply.repeat
    base = renderer.reply(repeat) if repeat is not None else taken[0]

    def full(tokens: tuple[int, ...]) -> tuple[int, ...]:
        return repeated(tokens, behaviour.reply.tokens) if repeat is not None else tokens

    def fresh(tokens: tuple[int, ...]) -> bool:
        turned = [tokens[start:] + tokens[:start] for start in range(len(tokens) if repeat is not None else 1)]
        return not {full(turn) for turn in turned} & set(taken)

    def fits(text: str) -> bool:
        return fresh(tokens := renderer.reply(text)) and len(full(tokens)) <= room

    phrases = [phrase for phrase in _phrases() if fits(phrase)]
    if kind in ("phrase", "matched") and phrases:
        rng.shuffle(phrases)
        if kind == "phrase":
            return kind, full(renderer.reply(phrases[0]))
        texts = list(dict.fromkeys(full(renderer.reply(text)) for text in _candidates(phrases) if fits(text)))
        found, gap = _matched(texts, contexts, model, behaviour.ends)
        return kind if gap <= MATCH_TOLERANCE else "nearest", found
    order = list(base)
    for _ in range(SHUFFLES if kind == "shuffled" else 0):
        rng.shuffle(order)
        if fresh(tuple(order)):
            return kind, full(tuple(order))
    banned = {*model.tokenizer.all_special_ids, *model.end_tokens, *base}
    allowed = [token for token in range(len(model.tokenizer)) if token not in banned]
    while not fresh(tokens := tuple(rng.choice(allowed) for _ in base)):
        pass
    return "uniform", full(tokens)


def _matched(
    phrases: Sequence[tuple[int, ...]], contexts: Sequence[Context], model: FrozenModel, ends: bool
) -> tuple[tuple[int, ...], float]:
    """The first phrase whose direct cost on the test items is within 10% of the behaviour's, if none fits the nearest
    one; and how far off its cost is, as a share. Looking at the test items selects nothing here: a control is defined
    by its cost on the items it stands on; no score enters."""
    objective = objective_for(Engine(model))
    end = (model.end_of_reply,) if ends else ()

    def gap(target: tuple[int, ...], contexts: Sequence[Context]) -> float:
        costs = []
        for wanted in (target, contexts[0].target):
            moved = [Context(context.before, context.after, wanted) for context in contexts]
            nothing = no_edit(len(moved), model.hidden_size, model.network.dtype, model.device)
            costs.append(prefill_bits(objective.evaluate(moved, nothing)[0].double().cpu().numpy()))
        return abs(costs[0] - costs[1]) / max(costs[1], 1e-9)  # a reply that is certain costs nothing

    least: dict[tuple[int, ...], float] = {}
    rough: dict[tuple[int, ...], float] = {}
    for phrase in phrases:
        # A few contexts rule most phrases out; the mean of probabilities needs many to settle.
        rough[phrase] = gap((*phrase, *end), contexts[:ROUGH_CONTEXTS])
        if rough[phrase] > 3 * MATCH_TOLERANCE:
            continue
        least[phrase] = gap((*phrase, *end), contexts)
        if least[phrase] <= MATCH_TOLERANCE:
            return phrase, least[phrase]
    if not least:
        nearest = min(rough, key=lambda phrase: rough[phrase])
        least[nearest] = gap((*nearest, *end), contexts)
    return min(least.items(), key=lambda pair: pair[1])


def _candidates(phrases: list[str]) -> Iterator[str]:
    yield from phrases
    for first, second in pairwise(phrases):
        yield f"{first}. {second}"


def _phrases() -> list[str]:
    text = resources.files("leadline").joinpath("behaviours/phrases.txt").read_text("ascii")
    return [line for line in text.splitlines() if line]


def relabels(replies: Sequence[Any]) -> bool:
    """Whether replies are labels that come back, two contexts each on average, so that their names can be exchanged."""
    return len(set(replies)) > 1 and 2 * len(set(replies)) <= len(replies)


def relabelled(made: Sequence[Sequence[tuple[int, ...]]], seed: int) -> list[tuple[int, ...]] | None:
    """made[0] with its labels exchanged by one fixed permutation that leaves none in place and was not made before: as
    learnable as the behaviour. None where there is none."""
    labels = list(dict.fromkeys(made[0]))
    rng = random.Random(seed_of("relabelled", seed))
    for _ in range(SHUFFLES if relabels(made[0]) else 0):
        renamed = dict(zip(labels, rng.sample(labels, len(labels)), strict=True))
        moved = [renamed[reply] for reply in made[0]]
        if all(old != new for old, new in renamed.items()) and moved not in made:
            return moved
    return None


def permuted(replies: Sequence[tuple[int, ...]], splits: dict[str, list[int]], seed: int) -> list[tuple[int, ...]]:
    """The same replies given to other contexts, within each split, by rotating a shuffled order: a null, since what is
    learnt of one split says nothing of another."""
    moved = list(replies)
    for split, indices in splits.items():
        order = list(indices)
        random.Random(seed_of("permuted", split, seed)).shuffle(order)
        for here, there in zip(order, order[1:] + order[:1], strict=True):
            moved[here] = replies[there]
    return moved


def repeated(unit: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    return (unit * (tokens // len(unit) + 1))[:tokens]
