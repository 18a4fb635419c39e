"""K3: a trained lock. Its distance by listing all 512 keys, a miss of one symbol, and the functions of the text family
and the coder against it."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from leadline.behaviour import Behaviour, Reply
from leadline.coder import Reader, Writer, uniform
from leadline.engine import Context, Engine
from leadline.estimators import text_bound
from leadline.interventions.text_prompt import TextPrompt
from leadline.model import load
from leadline.objective import Objective
from leadline.organisms.base import stored
from leadline.organisms.lock import BEGIN, CLOSED, CONTEXTS, OPEN, SYMBOLS, VOCABULARY, LockRecipe, lock
from leadline.places import places
from leadline.slot import Renderer
from leadline.texts import TextPrior

KEY = LockRecipe().key
KEYS = ["".join(signs) for signs in product(SYMBOLS, repeat=len(KEY))]
BITS = 3 * len(KEY)


@pytest.fixture(scope="module")
def model():
    """Trained in seconds, once into the cache."""
    return load(str(stored(lock())), "float32,eager,1")


def tokens(*signs: str) -> list[int]:
    return [VOCABULARY.index(sign) for sign in signs]


@pytest.fixture(scope="module")
def logits(model):
    """(keys, contexts, length, vocabulary) logits by transformers alone, of every key in front of every context."""
    rows = torch.tensor([[BEGIN, *tokens(*key), *tokens(context)] for key in KEYS for context in CONTEXTS])
    with torch.no_grad():
        return model.network(rows).logits.double().view(len(KEYS), len(CONTEXTS), 5, -1)


@pytest.fixture(scope="module")
def opens(model):
    """Which keys open the lock in every context, by the family's own edit and the engine's margins."""
    prompt = TextPrompt(model, [])
    contexts = [Context((BEGIN,), tuple(tokens(context)), tuple(tokens(OPEN))) for context in CONTEXTS]
    written = torch.tensor([tokens(*key) for key in KEYS for _ in CONTEXTS])
    objective = Objective(Engine(model))
    with torch.no_grad():
        margins = objective.evaluate(contexts * len(KEYS), prompt.edit(written))[1]
    return (margins.view(len(KEYS), -1) > 0).all(1)


def test_of_all_512_keys_one_opens_and_transformers_alone_say_the_same(logits, opens):
    replies = logits[:, :, -1].argmax(-1)
    by_hand = (replies == VOCABULARY.index(OPEN)).all(1)
    assert torch.equal(by_hand, opens)
    assert [key for key, works in zip(KEYS, opens.tolist()) if works] == [KEY]
    assert -math.log2(int(opens.sum()) / len(KEYS)) == BITS


def test_a_key_off_by_one_symbol_stays_locked_in_every_context(logits):
    replies = logits[:, :, -1].argmax(-1)
    near = [place for place, key in enumerate(KEYS) if sum(a != b for a, b in zip(key, KEY)) == 1]
    assert len(near) == 7 * len(KEY)
    assert (replies[near] == VOCABULARY.index(CLOSED)).all()


def test_text_is_the_models_own_price_of_the_key_and_near_to_its_length(model, logits, opens):
    """The lock's own text is near to uniform over symbols, so TEXT is near to 3 bits a symbol, and the same number as
    transformers' own chain rule."""
    working = [key for key, works in zip(KEYS, opens.tolist()) if works]
    written = torch.tensor([tokens(*key) for key in working])
    prices = TextPrior(model, (BEGIN,)).surprisal_bits(written)
    found = text_bound((-prices).tolist(), "own text", texts=working).upper
    assert found is not None
    row = logits[KEYS.index(KEY), 0].log_softmax(-1) / math.log(2.0)
    by_hand = -sum(float(row[place, token]) for place, token in enumerate(tokens(*KEY)))
    assert found.value == pytest.approx(by_hand, abs=1e-4)
    assert abs(found.value - BITS) < 1.0


def test_every_key_can_be_typed_at_the_slot(model):
    behaviour = Behaviour(name="lock", contexts=tuple(CONTEXTS), format="raw", reply=Reply(text=OPEN), ends=False)
    everywhere = places(Renderer(model, behaviour.slot), behaviour)
    assert [place.before for place in everywhere] == [(BEGIN,)] * len(CONTEXTS)
    prompt = TextPrompt(model, everywhere)
    assert [prompt.text(tokens(*key)) for key in KEYS] == KEYS


def test_the_message_of_the_key_is_the_distance_but_for_two_bits_and_the_rest_of_a_byte(opens):
    writer, table = Writer(), uniform(len(SYMBOLS))
    writer.put([SYMBOLS.index(sign) for sign in KEY], table)
    message = writer.message()
    assert BITS <= 8 * len(message) <= 8 * math.ceil((BITS + 2) / 8)
    decoded = "".join(SYMBOLS[symbol] for symbol in Reader(message).take(len(KEY), table))
    assert opens[KEYS.index(decoded)], "what the message decodes to opens the lock"
