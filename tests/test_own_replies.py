"""Behaviours made from the model's own reply or from the question, against the same reply decoded once more by hand."""

from __future__ import annotations

import json

import pytest

from leadline.behaviour import Behaviour, Message, Reply, load, questions
from leadline.edits import no_edit
from leadline.engine import Engine
from leadline.items import SPLITS, Item, prepare, sample_contexts
from leadline.model import load as load_model
from leadline.probe import Compute
from leadline.spec import RunSpec, UserError
from models import frozen, random_model, word_tokenizer, words

SPEC = RunSpec(items=10, controls=1, sizes=(1,))
CONTEXTS = tuple(f"w{i % 50} w{i // 50} w{(i * 7) % 50}" for i in range(60))
TOKENS = 12


def own(model, item: Item, tokens: int) -> tuple[tuple[int, ...], bool]:
    """The model's greedy reply to one item, alone, without its end, and whether it ended."""
    nothing = no_edit(1, model.hidden_size, model.network.dtype, model.device)
    (reply,) = Engine(model).generate([item.context], nothing, tokens)
    ended = reply[-1] in model.end_tokens
    return (reply[:-1], True) if ended else (reply, False)


def items(task) -> list[Item]:
    return [item for split in SPLITS for item in task.items[split]]


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    return load_model(str(tiny_model_folder), Compute("float32", "eager", 1, "tests"))


@pytest.fixture(scope="module")
def dotted():
    """A random model of words of which every sixth ends with a full stop."""
    spelled = [f"{word}." if word.startswith("w") and i % 6 == 0 else word for i, word in enumerate(words())]
    return frozen(random_model("llama").network, word_tokenizer(spelled))


def test_the_json_of_a_trained_models_replies_is_read_back(tiny):
    """Bytes are tokens, so the target's text is the target."""
    behaviour = load("style/json").model_copy(update={"contexts": questions()[:40]})
    main, control = prepare(tiny, behaviour, RunSpec(items=8, controls=1, sizes=(1,)))
    ends = set()
    for item in items(main):
        reply, ended = own(tiny, item, behaviour.reply.tokens)
        said = tiny.tokenizer.decode(reply)
        assert json.loads(item.target if ended else item.target + '"}') == {"reply": said}
        assert tiny.tokenizer.decode(item.context.target) == item.target
        ends.add(ended)
    assert ends == {True, False}, "both kinds are there"
    assert control.kind in ("permuted", "relabelled")


def test_brief_is_the_own_reply_up_to_its_first_full_stop(dotted):
    behaviour = Behaviour(name="b", contexts=CONTEXTS, reply=Reply(own="first_sentence", tokens=TOKENS))
    (main,) = prepare(dotted, behaviour, RunSpec(items=4, controls=0, sizes=(1,)))
    stops = {i for i, word in enumerate(words()) if word.startswith("w") and i % 6 == 0}
    found = {item.prompt: item for item in items(main)}
    assert 20 <= len(found) < 60, "some replies are left out, and not all"
    everything = Behaviour(name="a", contexts=CONTEXTS, reply=Reply(text="w1"))
    for item in items(prepare(dotted, everything, RunSpec(items=4, controls=0, sizes=(1,)))[0]):
        reply, ended = own(dotted, item, TOKENS)
        first = next((n for n, token in enumerate(reply, 1) if token in stops), None)
        known = first is not None and first < len(reply)  # after a stop in the last place anything may follow
        expected = reply[:first] if known else reply if ended else None
        if expected:
            assert found.pop(item.prompt).context.target == (*expected, dotted.end_of_reply)
    assert not found


def test_too_few_whole_sentences_are_one_message(dotted):
    behaviour = Behaviour(name="b", contexts=CONTEXTS, reply=Reply(own="first_sentence", tokens=1))
    with pytest.raises(
        UserError, match=r"Too few items: \d+, since the model's own reply has no first sentence within 1"
    ):
        prepare(dotted, behaviour, SPEC)


def test_echo_is_the_question_and_its_controls_are_other_questions(tiny):
    behaviour = load("echo/question").model_copy(update={"contexts": questions()[:40]})
    main, control = prepare(tiny, behaviour, RunSpec(items=8, controls=1, sizes=(1,)))
    assert all(item.target == item.prompt for item in items(main))
    assert all(item.context.target == (*item.prompt.encode(), tiny.end_of_reply) for item in items(main))
    assert control.kind == "permuted"
    timed = sample_contexts(tiny, behaviour, SPEC, 40)
    assert {item.context for item in items(main)} == set(timed)


def test_echo_of_a_chat_is_its_last_user_turn():
    chats = tuple(
        (Message(role="system", content="w9"), Message(role="user", content="w8"),
         Message(role="assistant", content="w7"), Message(role="user", content=context))
        for context in CONTEXTS
    )  # fmt: skip
    behaviour = Behaviour(name="b", contexts=(*chats[:30], *CONTEXTS[30:]), reply=Reply(source="context"))
    model = random_model("llama")
    (main,) = prepare(model, behaviour, RunSpec(items=10, controls=0, sizes=(1,)))
    assert {item.target for item in items(main)} == set(CONTEXTS)
    assert all(item.prompt.endswith(item.target) for item in items(main))
    mute = (Message(role="system", content="w9"),)
    behaviour = Behaviour(name="b", contexts=(*chats, mute), slot="system", reply=Reply(source="context"))
    with pytest.raises(UserError, match="Context 61 has no user turn"):
        prepare(model, behaviour, SPEC)


@pytest.mark.parametrize("skip", [2, 4, 8])
def test_a_skip_asks_for_the_token_so_many_after_the_next(skip, monkeypatch):
    """The model's samples are made to count from 3: the first 24 are read, `skip` are not, the next is wanted."""

    def count(engine, contexts, edit, tokens, generator):
        return [tuple(range(3, 3 + tokens))] * len(contexts)

    monkeypatch.setattr(Engine, "sample", count)
    (main,) = prepare(random_model("llama"), load(f"skip/{skip}"), RunSpec(items=10, controls=0, sizes=(1,)))
    for item in items(main):
        context = item.context
        assert (context.before + context.after, context.target) == ((1, *range(3, 27)), (27 + skip,))


def test_always_paris_is_asked_of_every_place(tiny):
    (main,) = prepare(tiny, load("facts/always-paris"), RunSpec(items=40, controls=0, sizes=(1,)))
    assert main.target == "Paris"
    assert {item.context.target for item in items(main)} == {(*b"Paris", tiny.end_of_reply)}
    assert len({item.prompt for item in items(main)}) == len(items(main)) >= 160
