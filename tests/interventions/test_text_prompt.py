"""Which tokens are a text: what prints, and comes back as the same tokens once it is typed into the context."""

from __future__ import annotations

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from leadline.behaviour import Slot
from leadline.interventions.text_prompt import TextPrompt, allowed_tokens, place, uniform_bits
from leadline.model import load
from leadline.slot import Renderer
from leadline.texts import in_place
from models import TEMPLATE, frozen, random_model

SIGNS = [*"<>/ abcsuerintaotmy\n", "ab", "ba", "</s>", "<|x|>"]


@pytest.fixture(scope="module")
def model():
    """One token a character, and "ab" and "ba" where two characters stand beside each other; no separator is cut off,
    so that the neighbours of the slot can merge with the text."""
    signs = list(dict.fromkeys(SIGNS))[:-2]
    inner = Tokenizer(models.BPE({sign: i for i, sign in enumerate(signs)}, [("a", "b"), ("b", "a")]))
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([AddedToken(sign, special=True, normalized=False) for sign in ("</s>", "<|x|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = TEMPLATE.replace(" {{ m['content'] }} ", "{{ m['content'] }}")
    return frozen(random_model("llama").network, tokenizer)


def ids(model, *signs: str) -> list[int]:
    return [model.tokenizer.convert_tokens_to_ids(sign) for sign in signs]


def prompt(model, slot: Slot, *users: str) -> TextPrompt:
    renderer = Renderer(model, slot)
    return TextPrompt(model, [place(renderer, [{"role": "user", "content": user}]) for user in users])


def test_a_text_comes_back_as_the_same_tokens(model) -> None:
    assert prompt(model, "before_user", "me", "a").text(ids(model, "m", "ab")) == "mab"
    assert prompt(model, "before_user", "me").text(ids(model, "b", "ba")) == "bba"


def test_tokens_that_the_tokenizer_would_cut_otherwise_are_no_text(model) -> None:
    assert prompt(model, "before_user", "me").text(ids(model, "a", "b")) is None
    # the first merge wins: "aba" is cut "ab", "a"
    assert prompt(model, "before_user", "me").text(ids(model, "a", "ba")) is None


@pytest.mark.parametrize(("slot", "fits", "clashes"), [("before_user", "mu", "bu"), ("after_user", "um", "ub")])
def test_a_neighbour_that_grows_together_with_the_text_rules_it_out(model, slot, fits, clashes) -> None:
    tokens = ids(model, "a")
    assert prompt(model, slot, fits).text(tokens) == "a"
    assert prompt(model, slot, clashes).text(tokens) is None
    assert prompt(model, slot, fits, clashes).text(tokens) is None


def test_a_string_has_the_tokens_that_it_has_in_place(model) -> None:
    def placed(user: str):
        return place(Renderer(model, "before_user"), [{"role": "user", "content": user}])

    assert in_place(placed("mu"), "bab") == tuple(ids(model, "b", "ab"))
    assert in_place(placed("bu"), "ma") is None  # it would grow together with what stands behind
    assert in_place(placed("mu"), "") == ()


def test_a_template_that_trims_rules_out_blanks_at_the_edge(model) -> None:
    trimming = model.tokenizer.chat_template.replace("m['content']", "m['content'] | trim")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model.tokenizer.backend_tokenizer, eos_token="</s>")
    tokenizer.chat_template = trimming
    trimmed = frozen(model.network, tokenizer)
    text = ids(model, " ", "m")
    assert prompt(model, "before_user", "me").text(text) == " m"
    assert prompt(trimmed, "before_user", "me").text(text) is None
    assert prompt(trimmed, "after_user", "me").text(text) == " m"


def test_special_tokens_and_control_characters_are_never_allowed(model) -> None:
    allowed = allowed_tokens(model)
    assert not allowed[ids(model, "</s>", "<|x|>")].any()
    assert allowed[ids(model, "a", " ", "<", "ab")].all()
    assert not allowed[len(model.tokenizer) :].any()
    # typed, the string of a special token is that token: it would come back
    assert prompt(model, "before_user", "me").text(ids(model, "<|x|>")) is None
    typed = Renderer(model, "before_user").chat_with([{"role": "user", "content": "me"}], "<|x|>")
    assert ids(model, "<|x|>")[0] in typed


def test_of_bytes_only_those_that_print_are_allowed(tiny_model_folder) -> None:
    tiny = load("organism:tiny", "float32,eager,1")
    assert torch.nonzero(allowed_tokens(tiny))[:, 0].tolist() == [10, *range(32, 127)]
    assert uniform_bits(2, allowed_tokens(tiny)) == pytest.approx(2 * 6.5849625)


def test_the_edit_writes_the_embeddings_of_the_tokens() -> None:
    gemma = random_model("gemma")  # scales its embeddings
    tokens = torch.tensor([[3, 4], [5, 3]])
    edit = TextPrompt(gemma, []).edit(tokens)
    assert edit.lengths == (2, 2)
    scaled = gemma.network.get_input_embeddings().weight[tokens] * gemma.hidden_size**0.5
    torch.testing.assert_close(edit.values, scaled)
