"""TEXT: the sum in logarithms, its refusals, and K12: all texts of a small vocabulary give the distance itself."""

from __future__ import annotations

import math

import pytest
import torch

from leadline.engine import Context, Engine
from leadline.estimators import text_bound
from leadline.interventions.text_prompt import TextPrompt
from leadline.objective import objective_for
from leadline.texts import TextPrior
from models import VOCABULARY, random_model


def test_the_sum_in_bits() -> None:
    found = text_bound([-3.0, -4.0, -4.0], "p").upper
    assert found is not None
    assert found.value == 2.0
    assert (found.kind, found.estimator, found.prior) == ("certified upper", "TEXT", "p")
    assert (found.low, found.high, found.confidence) == (2.0, 2.0, 1.0)
    assert found.ledger == (("the likeliest text", 3.0), ("2 other texts", -1.0))


def test_it_says_an_upper_bound_and_nothing_else() -> None:
    found = text_bound([-3.0])
    assert (found.estimate, found.lower) == (None, None)
    assert found.upper is not None
    assert found.upper.value == 3.0
    assert text_bound([]).upper is None


def test_texts_of_any_length_count() -> None:
    found = text_bound([-5000.0] * 16).upper
    assert found is not None
    assert found.value == 4996.0
    assert text_bound([-7.0, -math.inf]).upper == text_bound([-7.0, -1e9]).upper
    never = text_bound([-math.inf, -math.inf]).upper
    assert never is not None
    assert never.value == math.inf


def test_a_text_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 3 texts"):
        text_bound([-3.0, -4.0, -3.0], texts=[(1, 2), (2, 1), (1, 2)])
    assert text_bound([-3.0, -4.0], texts=[(1, 2), (2, 1)]).upper == text_bound([-3.0, -4.0]).upper


@pytest.mark.parametrize(
    ("logs", "texts"),
    [([-1.0, -0.5], None), ([3.0], None), ([math.nan], None), ([[-1.0]], None), ([-1.0], [(1,), (2,)])],
)
def test_what_is_no_probability_is_refused(logs, texts) -> None:
    with pytest.raises(ValueError, match=r"mass|NaN|texts for"):
        text_bound(logs, texts=texts)


def test_k12_all_one_token_texts_give_the_distance_itself() -> None:
    """Distance and bound of the behaviour "the reply starts with the token that it starts with for most prompts", over
    the whole vocabulary: the distance from transformers alone, token ids in and softmax out; the bound through prior,
    edit, engine and level."""
    model = random_model("llama")
    prefix, after = (1, 3), (9, 4)
    every = torch.arange(VOCABULARY)[:, None]
    with torch.no_grad():
        chances = model.network(torch.tensor([prefix])).logits[0, -1].double().softmax(-1)
        prompts = torch.cat([torch.tensor([prefix] * VOCABULARY), every, torch.tensor([after] * VOCABULARY)], 1)
        replies = model.network(prompts).logits[:, -1].argmax(-1)
    wanted = int(replies.mode().values)
    mass = float(chances[replies == wanted].sum())
    assert 0.01 < mass < 0.9

    prior, prompt = TextPrior(model, prefix), TextPrompt(model, [])
    contexts = [Context(prefix, after, (wanted,))] * VOCABULARY
    margins = objective_for(Engine(model)).evaluate(contexts, prompt.edit(every))[1]
    hits = every[margins > 0]
    assert 1 < len(hits) < VOCABULARY
    found = text_bound((-prior.surprisal_bits(hits)).numpy(), texts=[tuple(text) for text in hits.tolist()]).upper
    assert found is not None
    assert found.value == pytest.approx(-math.log2(mass), abs=1e-5)
