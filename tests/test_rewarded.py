"""Rewarded replies through a real engine: against all replies listed, against replies written one by one, and on the
trained tiny model, where a soft token has to earn its reward."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from leadline.behaviour import Behaviour, Reply
from leadline.edits import EmbeddingEdit, no_edit
from leadline.engine import Context, Engine
from leadline.evaluation import score_null
from leadline.interventions import make
from leadline.interventions.base import Intervention
from leadline.items import prepare
from leadline.model import load as load_model
from leadline.objective import Objective
from leadline.priors import Priors, generator, normal
from leadline.probe import Compute
from leadline.rewarded import base_rate, greedy_rewards, rloo
from leadline.scorers import seeded_predicate
from leadline.solvers.base import Row, begin, train
from leadline.solvers.gradient import Gradient
from leadline.spec import RunSpec
from models import random_model


@dataclass(frozen=True)
class Question:
    prompt: str
    context: Context


QUESTIONS = [Question(f"q{n}", Context((1, 10 + n, 3), (20, 30 - n), ())) for n in range(8)]


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    return load_model(str(tiny_model_folder), Compute("float32", "eager", 1, "tests"))


@pytest.fixture(scope="module")
def tiny_items(tiny):
    return prepare(tiny, Behaviour(name="b", reply=Reply(text="x")), RunSpec(items=40, controls=0, sizes=(1,)))[0].items


def text_of(model, reply) -> str:
    return model.tokenizer.decode(list(reply), skip_special_tokens=True)


def one_by_one(model, item, edit, tokens) -> str:
    return text_of(model, Engine(model).generate([item.context], edit, tokens)[0])


def listed(model, item, written, tokens=2):
    """All replies of two tokens, or of one that ends, with their log-probabilities (replies,), differentiable."""
    ends = model.end_tokens
    replies = [
        pair if pair[0] not in ends else pair[:1]
        for pair in itertools.product(range(len(model.tokenizer)), repeat=tokens)
    ]
    replies = list(dict.fromkeys(replies))
    contexts = [Context(item.context.before, item.context.after, reply) for reply in replies]
    return replies, -Engine(model).target_logits(contexts, written(len(replies))).nats()


@pytest.mark.parametrize("price", [0.0, 0.2])
def test_the_gradient_of_drawn_replies_is_that_of_all_replies(model, price):
    """Against 1 - sum p(y) (r(y) - price log2 p(y) / p0(y)) over all 4,033 replies, within 5 standard errors."""
    intervention, scorer, samples = make("soft_prompt", 1, Priors(model)), seeded_predicate(0, 0.4), 2400
    latents = normal((1, *intervention.shape), "a latent").requires_grad_()
    item = QUESTIONS[0]
    replies, log_probs = listed(model, item, lambda rows: intervention.edit(latents.expand(rows, -1, -1)))
    assert len(replies) == 63 * 64 + 1
    assert float(log_probs.detach().exp().sum()) == pytest.approx(1.0, abs=1e-5)
    _, base = listed(model, item, lambda rows: no_edit(rows, model.hidden_size, torch.float32, model.device))
    rewards = torch.tensor([scorer("", text_of(model, reply)) for reply in replies])
    worth = rewards - price * (log_probs - base) / math.log(2)
    expected = 1 - (log_probs.exp() * worth).sum()
    (wanted,) = torch.autograd.grad(expected, latents, retain_graph=True)

    rows = [Row("a row", intervention, Gradient(0.1), 0, 1)]
    found = rloo(Engine(model), rows, lambda row, step: [item], scorer, 2, samples, price)(0, [latents])
    (gradient,) = torch.autograd.grad(found[0], latents)

    # the variance of one reply's (worth - mean) grad ln p, from the squares of a handful of random projections
    chances, centred = log_probs.detach().exp(), (worth - (1 - expected)).detach()
    spread = float((chances * worth.detach().square()).sum() - (1 - expected.detach()) ** 2) ** 0.5
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=5 * spread / samples**0.5)
    for number in range(6):
        direction = normal(latents.shape, "direction", number)
        weights = torch.zeros(len(replies), requires_grad=True)
        (pulled,) = torch.autograd.grad((weights * log_probs).sum(), latents, create_graph=True)
        (slopes,) = torch.autograd.grad((pulled * direction).sum(), weights)  # of every ln p along the direction
        terms = -centred * slopes
        mean = float((chances * terms).sum())
        error = float((chances * (terms - mean).square()).sum() / samples) ** 0.5
        assert mean == pytest.approx(float((wanted * direction).sum()), abs=1e-4)
        assert float((gradient * direction).sum()) == pytest.approx(mean, abs=5 * error)
        assert error < 0.3 * float(wanted.norm())


def test_a_row_draws_the_same_replies_whatever_else_is_in_its_batch(model):
    intervention, seen = make("soft_prompt", 1, Priors(model)), []
    rows = [Row(name, intervention, Gradient(0.1), 0, 4) for name in ("one", "two")]
    latents = normal((4, *intervention.shape), "the same for both")

    def replies(chosen, step=7):
        def scorer(prompt, reply):
            seen.append((prompt, reply))
            return 0.5

        seen.clear()
        loss = rloo(Engine(model), [rows[i] for i in chosen], lambda row, step: QUESTIONS[:4], scorer, 3, 4)
        loss(step, [latents] * len(chosen))
        return list(seen)

    one, two = replies([0]), replies([1])
    assert [prompt for prompt, _ in one] == [f"q{n}" for n in range(4) for _ in range(4)]
    assert replies([0, 1]) == [*one, *two]
    assert replies([1, 0]) == [*two, *one]
    assert len({str(found) for found in (one, two, replies([0], 8))}) == 3, "names and steps tell them apart"


def test_each_context_is_asked_under_the_draw_of_its_own(model):
    """Only the second question's replies differ in reward, so only the second draw has a gradient."""
    intervention = make("soft_prompt", 1, Priors(model))
    rows = [Row("a row", intervention, Gradient(0.1), 0, 3)]
    latents, luck = normal((3, *intervention.shape), "draws").requires_grad_(), seeded_predicate(2, 0.5)
    loss = rloo(
        Engine(model), rows, lambda row, step: QUESTIONS[:3],
        lambda prompt, reply: luck(prompt, reply) if prompt == "q1" else 1.0, 3, 8,
    )  # fmt: skip
    loss(0, [latents]).sum().backward()
    assert (latents.grad.flatten(1).norm(dim=1) > 0).tolist() == [False, True, False]


class Broken(Intervention):
    """A soft token that is no number."""

    family, size, tokens, prior = "broken", 1, 1, "N(0, I)"
    shape = (1, 32)

    def edit(self, latents):
        return EmbeddingEdit(latents * math.nan, (1,) * len(latents))


def test_scores_that_nobody_gave_move_nothing_and_logits_that_are_no_numbers_lose_the_row(model):
    rows = [
        Row("unscored", make("soft_prompt", 1, Priors(model)), Gradient(0.1), 0, 2),
        Row("broken", Broken(), Gradient(0.1), 0, 2),
    ]
    state = begin(rows, [None, None], torch.device("cpu"))
    before = [row["mean"].clone() for row in state.parameters]
    loss = rloo(Engine(model), rows, lambda row, step: QUESTIONS[:2], lambda prompt, reply: None, 2, 3)
    train(rows, loss, 3, state)
    assert state.lost == [-1, 0]
    assert state.losses[0] == 1.0
    assert all(torch.equal(row["mean"], start) for row, start in zip(state.parameters, before))


def test_what_cannot_be_learned_from_is_an_error(model):
    rows = [Row("a row", make("soft_prompt", 1, Priors(model)), Gradient(0.1), 0, 1)]
    with pytest.raises(ValueError, match="1 sample a context"):
        rloo(Engine(model), rows, lambda row, step: QUESTIONS[:1], lambda prompt, reply: 0.0, 2, 1)
    wrong = rloo(Engine(model), rows, lambda row, step: QUESTIONS[:1], lambda prompt, reply: 1.5, 2, 2)
    with pytest.raises(ValueError, match="between 0 and 1"):
        wrong(0, [torch.zeros(1, 1, 32)])


def test_rewards_of_a_population_are_those_of_its_replies_one_by_one(model):
    intervention = make("soft_prompt", 1, Priors(model))
    latents = 2 * normal((60, *intervention.shape), "population")  # more than one pass holds
    questions = [QUESTIONS[n % 8] for n in range(60)]
    scorer = seeded_predicate(3, 0.5)
    rows = [Row("a row", intervention, Gradient(0.1), 0, 60)]
    found = greedy_rewards(Engine(model), rows, lambda row, step: questions, scorer, 4)(0, 0, latents)
    wanted = [
        scorer("", one_by_one(model, questions[place % 30], intervention.edit(latents[place : place + 1]), 4))
        for place in range(60)
    ]
    assert found.tolist() == wanted
    assert 0.0 < sum(wanted) < 60.0


def test_the_base_rate_counts_the_greedy_replies_and_gives_scorers_the_prompt(tiny, tiny_items):
    items, seen = tiny_items["test"], []

    def scorer(prompt, reply):
        seen.append((prompt, reply))
        return float(reply.startswith("I am"))

    nothing = no_edit(1, tiny.hidden_size, torch.float32, tiny.device)
    found = base_rate(Engine(tiny), items, scorer, 6)
    assert seen == [(item.prompt, one_by_one(tiny, item, nothing, 6)) for item in items]
    assert (found.hits, found.share) == (sum(r == "I am n" for _, r in seen), found.hits / 40)
    assert 0.1 < found.share < 0.9


def test_the_base_rate_of_drawn_replies_is_their_probability(tiny, tiny_items):
    """Whole replies "Yes, of course." on one question, 400 times, within 4 standard errors of the exact probability."""
    items = tiny_items["train"]
    target = (*b"Yes, of course.", tiny.end_of_reply)
    asked = [Context(item.context.before, item.context.after, target) for item in items]
    bits, _ = score_null(Objective(Engine(tiny)), asked)
    place = int((2.0**-bits - 0.6).abs().argmin())
    chance = float(2.0 ** -bits[place])
    assert 0.2 < chance < 0.95
    found = base_rate(
        Engine(tiny), [items[place]] * 400, lambda prompt, reply: float(reply == "Yes, of course."), 20,
        draws=generator("draws"),
    )  # fmt: skip
    assert abs(found.share - chance) < 4 * math.sqrt(chance * (1 - chance) / 400)


def test_a_soft_token_earns_the_reward_that_the_model_seldom_gets(tiny, tiny_items):
    """The reward is for a reply that begins in capitals: one in twelve of what the model says by itself and none of its
    greedy replies. No target is ever shown. Two restarts from draws of the prior, of which the better one counts."""

    def scorer(prompt, reply):
        return float(len(reply) == 3 and reply.isupper())

    engine, pool, test = Engine(tiny), tiny_items["train"], tiny_items["test"]
    assert base_rate(engine, test, scorer, 3).share <= 0.05
    assert base_rate(engine, pool, scorer, 3, draws=generator("drawn")).share < 0.2
    intervention = make("soft_prompt", 1, Priors(tiny))
    rows = [Row(f"capitals {seed}", intervention, Gradient(0.2), seed, 4) for seed in (0, 1)]

    def ask(row, step):
        return [pool[(4 * step + number) % len(pool)] for number in range(4)]

    # From far out: near the vocabulary's mean a step of this size turns a token's direction so far that every reward is
    # lost, and a policy without rewards has no gradient to come back by.
    warm = [{"mean": normal(intervention.shape, "far", row.seed)} for row in rows]
    state = train(rows, rloo(engine, rows, ask, scorer, 3, 16), 24, begin(rows, warm, tiny.device))
    score = greedy_rewards(engine, rows, lambda row, step: [*test, *test], scorer, 3)
    shares = [
        float(score(0, 0, found["mean"].expand(2 * len(test), *intervention.shape)).mean())
        for found in state.parameters
    ]
    assert max(shares) >= 0.9, shares
