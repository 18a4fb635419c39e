"""What a reward asks of a measurement beside what a target asks: who judges, how often replies are hits by themselves,
controls that a hash rewards, and a loss that is learnt from sampled replies.

S = {z : the share of test items whose greedy reply scores at least the cut is tau or more}. All that reads margins goes
on as before. A reply has no target, so there is no loss in bits, no direct cost, and no near tie that could be scored
again: in low precision S belongs to the number format that is on record. It does not know whether the scorer is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from leadline import rows
from leadline.behaviour import Behaviour
from leadline.interventions.base import edit
from leadline.items import Item
from leadline.judge import agreement, endpoint_judge
from leadline.plan import Cell
from leadline.priors import generator, normal
from leadline.records import Run
from leadline.rewarded import SAMPLES, Ask, Judged, margins, replies_of, rloo
from leadline.scorers import SCORERS, Scorer, scored, seeded_predicate
from leadline.solvers.base import Loss, Parameters, Row
from leadline.spec import UserError
from leadline.work import Work

LEAST_DRAWS = 64  # sampled replies from which the base rate is counted, at least
HASHES = 256  # hashes tried for each control
JUDGED = "judged"  # the event of one answer of a judge
START_DRAWS = 32  # draws of the prior of which training starts at the best
START_ITEMS = 4  # training items that they are compared on


def scorer_of(behaviour: Behaviour, given: Scorer | None) -> Scorer | None:
    """Who judges a behaviour's replies; None where it has targets. Raises UserError where nobody is known by the name,
    or two would be."""
    reward = behaviour.reward
    if reward is None:
        if given is not None:
            how = "Give the behaviour a reward, or leave the scorer out."
            raise UserError("This behaviour has a target, and a scorer was given", f"behaviour {behaviour.name}", how)
        return None
    where = f"behaviour {behaviour.name}, field reward"
    known = "the judge it asks" if reward.judge is not None else reward.scorer if reward.scorer in SCORERS else None
    if known is not None and given is not None:
        raise UserError(f"A scorer was given beside {known}", where, "Give it a name of its own in the reward.")
    if given is not None:
        return given
    if reward.judge is not None:
        return endpoint_judge(reward.judge.url, reward.judge.model, reward.judge.question)
    if reward.scorer not in SCORERS:
        how = f"Name one of {', '.join(SCORERS)}, or give measure() a scorer."
        raise UserError(f"Unknown scorer {reward.scorer}", where, how)
    return SCORERS[reward.scorer]


def remembered(scorer: Scorer, run: Run | None = None) -> Scorer:
    """The same scorer, asked once a prompt and reply: whether a draw lies in S may not change while it is counted.

    run: whose events keep the answers, of a judge that might answer otherwise after the process was killed
    """
    told = run.events(JUDGED) if run is not None else []
    answers = {(str(one["prompt"]), str(one["reply"])): _score(one["score"]) for one in told}

    def score(prompt: str, reply: str) -> float | None:
        if (prompt, reply) not in answers:
            answers[prompt, reply] = scorer(prompt, reply)
            if run is not None:
                run.event(JUDGED, prompt=prompt, reply=reply, score=answers[prompt, reply])
        return answers[prompt, reply]

    return score


def _score(told: Any) -> float | None:
    return None if told is None else float(told)


def judge_replies(work: Work, scorer: Scorer) -> None:
    """Says how the behaviour and its controls are judged from here on, and counts hits among sampled replies at size 0.

    A control rewards the replies that a hash picks (docs/measurement.md section 5), as many of the sampled ones as the
    behaviour's scorer does, as nearly as HASHES hashes allow, and at most half of them the same ones: else it would be
    the behaviour. Where the scorer rewards none, the hash picks one of all texts in two more than were drawn.
    """
    reward = work.behaviour.reward
    if reward is None:
        raise ValueError("a behaviour without a reward")
    if reward.judge is not None:
        work.reporter.note(f"Prompts and replies are sent to the judge at {reward.judge.url}")
    own = Judged(remembered(scorer, work.run if reward.judge is not None else None), reward.cut, reward.tokens)
    key = work.key("base rate")
    if not work.done(key):
        work.reporter.stage("sampled replies at size 0")
        record = _base_rate(work, own, key)
        if reward.labelled:
            scores = [own.scorer(said.prompt, said.reply) for said in reward.labelled]
            told = asdict(agreement(scores, [said.label for said in reward.labelled], reward.cut))
            record["agreement"] = {name: None if told[name] != told[name] else told[name] for name in told}
        work.write(key, record)
    stored: dict[str, Any] = work.run.cell(key) or {}
    hashes: dict[str, int] = stored["hashes"]
    predicates = {name: seeded_predicate(seed, stored["rate"]) for name, seed in hashes.items()}
    work.judged = {"": own, **{name: Judged(found, 0.5, reward.tokens) for name, found in predicates.items()}}
    work.objective = work.objective_of("")
    kept = ("draws", "hits", "unscored", "agreement")
    said = {name: stored[name] for name in kept if name in stored}
    work.extra["reward"] = {"scorer": reward.scorer, "cut": reward.cut, "tokens": reward.tokens, **said}


def _base_rate(work: Work, own: Judged, key: str) -> dict[str, Any]:
    """Hits of the behaviour and of its controls among replies at temperature 1, each to a test item drawn for it.
    Hashes are chosen by one half of the replies and counted on the other."""
    items, count = work.task("").items["test"], max(LEAST_DRAWS, work.spec.prior_draws)
    # One length after another, since the engine writes rows of one length together. It moves no draw.
    places = torch.randint(len(items), (count,), generator=generator("base rate", "items")).tolist()
    asked = sorted((items[place] for place in places), key=lambda item: len(item.context.before + item.context.after))
    written = work.no_edit(count)
    texts = replies_of(work.engine, asked, written, own.tokens, generator("base rate", "replies"))
    judged = scored([item.prompt for item in asked], texts, own.scorer, own.cut)
    rewarded = [score is not None and score >= own.cut for score in judged.scores]
    seen, counted = slice(0, None, 2), slice(1, None, 2)
    rate = (judged.hits + 1) / (count + 2)
    hashes: dict[str, int] = {}
    sampled = {"": (judged.hits, count)}
    for number, task in enumerate(work.tasks[1:]):
        hashes[task.name] = _hash(texts[seen], rewarded[seen], rate, number)
        predicate = seeded_predicate(hashes[task.name], rate)
        hits = [predicate("", text) == 1.0 for text in texts[counted]]
        sampled[task.name] = (sum(hits), len(hits))
    points = [rows.sampling_point(task, key, *sampled[task.name]) for task in work.tasks]
    counts = {"draws": count, "hits": {name: hits for name, (hits, _) in sampled.items()}, "unscored": judged.unscored}
    return {"points": points, **counts, "rate": rate, "hashes": hashes}


def _hash(texts: Sequence[str], rewarded: Sequence[bool], rate: float, number: int) -> int:
    """The seed of HASHES that rewards about as many of these replies as the scorer, and for the most part others."""
    times, alike = Counter(texts), Counter(text for text, hit in zip(texts, rewarded, strict=True) if hit)

    def badness(seed: int) -> tuple[bool, int]:
        mine = [text for text in times if seeded_predicate(seed, rate)("", text) == 1.0]
        shared, found = sum(alike[text] for text in mine), sum(times[text] for text in mine)
        return 2 * shared > sum(rewarded), abs(found - sum(rewarded))

    return min(range(number * HASHES, (number + 1) * HASHES), key=badness)


def reward_loss(work: Work, cells: Sequence[Cell], lines: Sequence[Row], ask: Ask) -> Loss:
    """The closure that solvers see: the shortfall of sampled replies, each row judged as its task is. In units of
    reward, so that a beta beside it is reward a bit of KL."""

    def alone(index: int) -> Loss:
        judged = work.judged[cells[index].task]
        return rloo(
            work.engine, [lines[index]], lambda _row, step: ask(index, step), judged.scorer, judged.tokens, SAMPLES
        )

    losses = [alone(index) for index in range(len(lines))]

    def loss(step: int, latents: list[Tensor]) -> Tensor:
        return torch.cat([one(step, [drawn]) for one, drawn in zip(losses, latents, strict=True)])

    return loss


def rewarded_starts(
    work: Work, cells: Sequence[Cell], lines: Sequence[Row], warm: Sequence[Parameters | None]
) -> Sequence[Parameters | None]:
    """Where rows start that go on from no other cell: at a draw of the prior that earns more than the others. A policy
    that is never rewarded has no gradient. Choosing it costs no bits, since q pays for where it ends. Rows with a
    target start as they are."""
    if not work.judged:
        return warm
    return [
        given or _start(work, cell, line) if cell.beta is None else given
        for cell, line, given in zip(cells, lines, warm, strict=True)
    ]


@torch.no_grad()
def _start(work: Work, cell: Cell, line: Row) -> Parameters:
    items: Sequence[Item] = work.task(cell.task).items["train"][:START_ITEMS]
    latents = normal((START_DRAWS, *line.intervention.shape), "reward start", line.name).to(work.model.device)
    asked = [item for _ in range(START_DRAWS) for item in items]
    conditions = [item.context.conditions for item in asked]
    written = edit([line.intervention], [latents.repeat_interleave(len(items), 0)], conditions)
    found = margins(work.engine, asked, written, work.judged[cell.task]).view(START_DRAWS, -1).mean(1)
    return {"mean": latents[int(found.argmax())].clone()}
