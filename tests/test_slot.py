"""The slot lies where the behaviour says, in chats and in plain text; the tokens around it are the template's own."""

from __future__ import annotations

import pytest

from leadline.slot import Renderer
from leadline.spec import UserError
from models import TEMPLATE, frozen, random_model, word_tokenizer, words

TURNS = [{"role": "user", "content": "w1 w2"}]


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


def text(model, tokens) -> str:
    return model.tokenizer.decode(list(tokens))


@pytest.mark.parametrize(
    ("slot", "before", "after"),
    [
        ("start", "", "<user> w1 w2 </s> <assistant>"),
        ("before_user", "<user>", "w1 w2 </s> <assistant>"),
        ("after_user", "<user> w1 w2", "</s> <assistant>"),
        ("before_reply", "<user> w1 w2 </s> <assistant>", ""),
        ("system", "<system>", "</s> <user> w1 w2 </s> <assistant>"),
    ],
)
def test_each_slot_cuts_the_rendered_chat_at_its_place(model, slot, before, after):
    found = Renderer(model, slot).chat(TURNS)
    assert (text(model, found[0]), text(model, found[1])) == (before, after)


@pytest.mark.parametrize("form", ["chat", "raw"])
@pytest.mark.parametrize("slot", ["start", "before_user", "after_user", "before_reply"])
def test_what_is_written_around_the_slot_has_its_tokens(model, slot, form):
    renderer = Renderer(model, slot)
    written = renderer.written("w1 w2", form)
    tokens = tuple(tuple(model.tokenizer(part, add_special_tokens=False)["input_ids"]) for part in written)
    assert tokens == renderer.user("w1 w2", form)
    assert tokens[0] + tokens[1] == sum(Renderer(model, "before_reply").user("w1 w2", form), ())


def test_without_an_intervention_the_tokens_are_those_of_the_template(model):
    whole = model.tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    wanted = model.tokenizer(whole, add_special_tokens=False)["input_ids"]
    for slot in ("start", "before_user", "after_user", "before_reply"):
        before, after = Renderer(model, slot).chat(TURNS)
        assert [*before, *after] == wanted


def test_a_system_turn_that_is_there_keeps_its_text(model):
    turns = [{"role": "system", "content": "w5"}, *TURNS]
    before, _ = Renderer(model, "system").chat(turns)
    assert text(model, before) == "<system> w5"


def test_plain_text_starts_with_the_start_token_and_empty_text_is_one(model):
    assert Renderer(model, "before_user").raw("w1") == ((1,), tuple(model.tokenizer("w1")["input_ids"]))
    assert Renderer(model, "before_user").raw("") == ((1,), ())
    assert Renderer(model, "start").raw("") == ((), (1,))


def test_a_template_that_drops_the_slot_is_refused():
    dropping = TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    network = random_model("llama").network
    model = frozen(network, word_tokenizer(words(), dropping))
    with pytest.raises(UserError, match=r"found 0 times.*slot system"):
        Renderer(model, "system").chat(TURNS)


def test_a_template_that_refuses_and_a_model_without_template_are_one_message_each():
    network = random_model("llama").network
    refusing = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match="System role not supported"):
        Renderer(frozen(network, word_tokenizer(words(), refusing)), "system").chat(TURNS)
    with pytest.raises(UserError, match="no chat template"):
        Renderer(frozen(network, word_tokenizer(words(), None)), "before_user").chat(TURNS)
    with pytest.raises(UserError, match="no user turn"):
        Renderer(random_model("llama"), "after_user").chat([{"role": "system", "content": "w1"}])


def test_a_target_without_tokens_is_refused(model):
    with pytest.raises(UserError, match="tokenises to nothing"):
        Renderer(model, "before_user").reply("  ")
    assert Renderer(model, "before_user").reply("w1 w2") == (7, 8)


@pytest.mark.parametrize("slot", ["start", "before_user", "after_user", "before_reply", "system"])
def test_a_typed_text_stands_between_the_tokens_around_the_slot(model, slot):
    renderer = Renderer(model, slot)
    before, after = renderer.chat(TURNS)
    assert renderer.chat_with(TURNS, " w7 w8 ") == (*before, *model.tokenizer("w7 w8")["input_ids"], *after)
    if slot != "system":
        before, after = renderer.raw("w1 w2")
        assert renderer.raw_with("w1 w2", " w7 w8 ") == (*before, *model.tokenizer("w7 w8")["input_ids"], *after)


@pytest.mark.parametrize("slot", ["before_user", "after_user"])
def test_a_typed_text_may_grow_together_with_its_neighbours(model, slot):
    word = model.tokenizer.convert_tokens_to_ids("w12")
    own, typed = ("2", "w1") if slot == "before_user" else ("w1", "2")
    assert word in Renderer(model, slot).chat_with([{"role": "user", "content": own}], typed)
    assert word in Renderer(model, slot).raw_with(own, typed)


def test_typed_into_empty_plain_text_it_follows_the_start_token(model):
    assert Renderer(model, "before_user").raw_with("", "w1") == (1, *model.tokenizer("w1")["input_ids"])
    assert Renderer(model, "start").raw_with("", "w1") == (*model.tokenizer("w1")["input_ids"], 1)
    plain = frozen(model.network, word_tokenizer(words(), begin=None))
    assert Renderer(plain, "start").raw_with("2", "w1") == (plain.tokenizer.convert_tokens_to_ids("w12"),)
