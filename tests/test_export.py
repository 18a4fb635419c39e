"""Exported solutions are what was trained: each format is loaded back by the tool it is for and held against the one
forward path, and what a format cannot hold is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PhiConfig, PhiForCausalLM

from leadline.behaviour import Behaviour, Reply, questions
from leadline.edits import Edit, EmbeddingEdit, KeyValueEdit, ResidualEdit, WeightEdit
from leadline.engine import Context
from leadline.integrations import NOTE, vocab_rows
from leadline.integrations.export import FORMATS, write
from leadline.integrations.prompt_embeds import assemble
from leadline.interventions import make
from leadline.model import FrozenModel, load
from leadline.priors import Priors, normal
from leadline.solution import Solution
from leadline.spec import UserError
from models import frozen, random_model, word_tokenizer, words

# PEFT asks transformers a question whose name has changed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SLOTS = ("start", "system", "before_user", "after_user", "before_reply")
TEXTS = ("w3 w1 w4", "w1", "w5 w9 w2 w6 w5 w3")
TARGET = (14, 15, 2)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def solved(model: FrozenModel, edit: Edit, slot: str = "before_user", form: str = "chat", family: str = "") -> Solution:
    """A solution as `solution.find` gives it, of a run on TEXTS that never was."""
    behaviour = Behaviour(name="test", format=form, slot=slot, contexts=TEXTS, reply=Reply(text="w8 w9"))
    found = Solution(model, behaviour, family or type(edit).__name__, 1, "0123456789abcdef", edit, ())
    contexts = [found.context(text) for text in TEXTS]
    return replace(found, contexts=tuple(Context(c.before, c.after, TARGET) for c in contexts))


def soft(model: FrozenModel, tokens: int = 3) -> EmbeddingEdit:
    return EmbeddingEdit(numbers(1, tokens, model.hidden_size), (tokens,))


def greedy(solution: Solution, text: str, tokens: int = 8) -> tuple[int, ...]:
    """The reply of the one forward path."""
    return solution.engine().generate([solution.context(text)], solution.edit, tokens)[0]


def logits(solution: Solution, context: Context) -> Tensor:
    """(targets, vocabulary) of the one forward path."""
    return solution.engine().target_logits([context], solution.edit).logits


def note(folder: Path) -> dict:
    return json.loads((folder / NOTE).read_text())


# PEFT


def held_against_peft(solution: Solution, folder: Path, network: torch.nn.Module) -> None:
    """The folder, loaded by PEFT onto a network of its own, gives the logits of the engine."""
    write(solution, "peft", folder)
    with torch.no_grad():
        tuned = peft.PeftModel.from_pretrained(network, folder).eval()
        for context in solution.contexts:
            whole = torch.tensor([[*context.before, *context.after, *context.target]])
            found = tuned(input_ids=whole).logits[0, -len(TARGET) - 1 : -1]
            torch.testing.assert_close(found, logits(solution, context), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["chat", "raw"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma"])
def test_a_soft_prompt_before_everything_is_pefts_prompt(tmp_path, architecture, form):
    model = random_model(architecture)
    held_against_peft(solved(model, soft(model), "start", form), tmp_path / "out", random_model(architecture).network)
    assert list(peft.utils.load_peft_weights(str(tmp_path / "out"))) == ["prompt_embeddings"]


@pytest.mark.parametrize("family", ["lora", "tinylora"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox"])
def test_a_change_of_weights_is_pefts_lora(tmp_path, architecture, family):
    model = random_model(architecture)
    intervention = make(family, 3, Priors(model))
    edit = intervention.edit(3.0 * normal((1, *intervention.shape), "export"))
    held_against_peft(solved(model, edit), tmp_path / "out", random_model(architecture).network)


def test_modules_of_a_smaller_rank_share_one_lora(tmp_path):
    model = random_model("llama")
    names = [f"model.layers.{block}.self_attn.q_proj" for block in range(2)]
    down = {name: numbers(1, rank, 32) for name, rank in zip(names, (1, 3))}
    up = {name: numbers(1, 32, rank) for name, rank in zip(names, (1, 3))}
    held_against_peft(solved(model, WeightEdit(down, up)), tmp_path / "out", random_model("llama").network)


def test_a_lora_is_bit_for_bit_the_same_in_bfloat16_as_the_note_says(tmp_path):
    model = random_model("llama", torch.bfloat16)
    intervention = make("lora", 2, Priors(model))
    solution = solved(model, intervention.edit(3.0 * normal((1, *intervention.shape), "export")))
    folder = write(solution, "peft", tmp_path / "out")
    assert "autocast_adapter_dtype=False" in note(folder)["use"]
    network = random_model("llama", torch.bfloat16).network
    with torch.no_grad():
        tuned = peft.PeftModel.from_pretrained(network, folder, autocast_adapter_dtype=False)
        for context in solution.contexts:
            found = tuned(input_ids=torch.tensor([[*context.before, *context.after, *context.target]]))
            assert torch.equal(found.logits[0, -len(TARGET) - 1 : -1], logits(solution, context))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_prefix_before_everything_is_pefts_prefix(tmp_path, architecture):
    """Without a beginning-of-text token, plain texts that begin with different words share nothing."""
    network = random_model(architecture).network
    model = frozen(network, word_tokenizer(words(), begin=None))
    shape = (1, 2, 2 if architecture == "llama" else 4, 3, 8)
    solution = solved(model, KeyValueEdit(numbers(*shape), 2.0 * numbers(*shape)), form="raw")
    assert solution.shared == ()
    held_against_peft(solution, tmp_path / "out", random_model(architecture).network)


@pytest.mark.parametrize("slot", SLOTS[1:])
def test_peft_refuses_a_prompt_with_tokens_before_it(tmp_path, slot):
    model = random_model("llama")
    standing = len(solved(model, soft(model), slot).contexts[2].before)
    with pytest.raises(UserError, match=rf"stands behind {standing} tokens: '<.*slot {slot}\)") as refused:
        write(solved(model, soft(model), slot), "peft", tmp_path / "out")
    assert "prompt-embeds" in refused.value.how
    assert list(tmp_path.iterdir()) == []


def test_peft_refuses_a_prefix_behind_shared_tokens_and_steering(tmp_path):
    model = random_model("llama")
    prefix = solved(model, KeyValueEdit(numbers(1, 2, 2, 3, 8), numbers(1, 2, 2, 3, 8)))
    with pytest.raises(UserError, match="stands behind 1 tokens: '<user>'"):
        write(prefix, "peft", tmp_path / "out")
    with pytest.raises(UserError, match="no format for steering"):
        write(solved(model, ResidualEdit(numbers(1, 1, 32), (0,)), family="steering"), "peft", tmp_path / "out")


# Prompt embeddings


@pytest.mark.parametrize(
    ("slot", "form"), [(s, f) for s in SLOTS for f in ("chat", "raw") if (s, f) != ("system", "raw")]
)
def test_assembled_prompts_give_the_reply_of_the_engine(tmp_path, slot, form):
    model = random_model("llama")
    solution = solved(model, soft(model), slot, form)
    folder = write(solution, "prompt-embeds", tmp_path / "out")
    for text in TEXTS:
        embeds = assemble(folder, model, text)
        found = model.network.generate(inputs_embeds=embeds[None], max_new_tokens=8, do_sample=False, eos_token_id=2)
        assert tuple(found[0].tolist()) == greedy(solution, text)


@pytest.mark.parametrize("form", ["chat", "raw"])
@pytest.mark.parametrize("slot", ["start", "before_user", "before_reply"])
def test_the_note_alone_is_enough_to_assemble_a_prompt(tmp_path, slot, form):
    """By its words, with a tokenizer and embeddings and nothing of leadline."""
    model = random_model("gemma")  # scales its embeddings
    folder = write(solved(model, soft(model), slot, form), "prompt-embeds", tmp_path / "out")
    told = note(folder)
    values = load_file(folder / "prompt_embeds.safetensors")["prompt_embeds"]
    parts = [
        model.tokenizer(told[part].replace(told["text"], "w7 w8"), add_special_tokens=False)["input_ids"]
        for part in ("before", "after")
    ]
    look_up = model.network.get_input_embeddings()
    before, after = (look_up(torch.tensor(part, dtype=torch.long)) for part in parts)
    torch.testing.assert_close(torch.cat([before, values, after]), assemble(folder, model, "w7 w8"))
    assert told["example"]["text"] == questions()[0]
    assert told["slot"] == slot


def test_prompt_embeddings_belong_to_their_model(tmp_path):
    model = random_model("llama")
    folder = write(solved(model, soft(model)), "prompt-embeds", tmp_path / "out")
    with pytest.raises(UserError, match="trained on another model"):
        assemble(folder, random_model("gpt2"), "w1")
    with pytest.raises(UserError, match="holds no prompt embeddings"):
        assemble(tmp_path, model, "w1")


# Rows of the vocabulary


@pytest.mark.parametrize("slot", ["start", "system", "before_user", "before_reply"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma", "mpt"])
def test_pasted_tokens_of_the_copy_give_the_reply_of_the_engine(tmp_path, architecture, slot):
    """llama has a head of its own, gpt2, gemma and mpt a tied one; gemma scales its embeddings."""
    model = random_model(architecture)
    solution = solved(model, soft(model), slot)
    before = model.weight_hash
    folder = write(solution, "vocab-rows", tmp_path / "out")
    told = note(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert network.generation_config.suppress_tokens == told["token_ids"] == [64, 65, 66]
    for text, context in zip(TEXTS, solution.contexts):
        ids = tokenizer(told["prompt"].replace(told["text"], text), add_special_tokens=False, return_tensors="pt")
        ids = ids["input_ids"]
        assert ids[0].tolist() == [*context.before, 64, 65, 66, *context.after]
        with torch.no_grad():
            found = network(input_ids=ids).logits[0, -1]
        torch.testing.assert_close(found[:64], logits(solution, context)[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[64:], found[told["head_rows_of"]].expand(3), rtol=1e-5, atol=1e-5)
        written = network.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=2)
        assert tuple(written[0, ids.shape[1] :].tolist()) == greedy(solution, text)
    fresh = FrozenModel("", "", "", model.network, model.tokenizer, model.compute)
    assert fresh.weight_hash == before
    assert len(model.tokenizer) == 64


def test_the_masked_tokens_are_never_written_even_where_they_would_win(tmp_path):
    """With the head row of the likeliest token, every one of them is as good as the reply's own."""
    model = random_model("llama")
    solution = solved(model, soft(model))
    folder = write(solution, "vocab-rows", tmp_path / "out")
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    context = solution.contexts[0]
    ids = torch.tensor([[*context.before, 64, 65, 66, *context.after]])
    with torch.no_grad():
        network.lm_head.weight[64:] = 2 * network.lm_head.weight[greedy(solution, TEXTS[0])[0]]
        assert int(network(input_ids=ids).logits[0, -1].argmax()) >= 64
    written = network.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=2)
    assert int(written[0, ids.shape[1]]) == greedy(solution, TEXTS[0])[0]


def test_a_head_with_a_bias_gives_minus_infinity(tmp_path):
    torch.manual_seed(0)
    network = PhiForCausalLM(
        PhiConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                  bos_token_id=1, eos_token_id=2, pad_token_id=2, attn_implementation="eager")
    )  # fmt: skip
    model = frozen(network, word_tokenizer(words()))
    solution = solved(model, soft(model, 1))
    folder = write(solution, "vocab-rows", tmp_path / "out")
    copied = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    context = solution.contexts[0]
    with torch.no_grad():
        found = copied(input_ids=torch.tensor([[*context.before, 64, *context.after]])).logits[0, -1].softmax(-1)
    assert found[64] == 0.0
    torch.testing.assert_close(found[:64], logits(solution, context)[0].softmax(-1))


def test_rows_that_no_token_has_are_taken_first(tmp_path):
    """Many models have more rows than tokens: 60 words in a vocabulary of 64."""
    network = random_model("gpt2").network
    model = frozen(network, word_tokenizer(words()[:60]))
    solution = solved(model, soft(model, 5))
    told = note(write(solution, "vocab-rows", tmp_path / "out"))
    assert told["token_ids"] == [60, 61, 62, 63, 64]
    copied = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert copied.config.vocab_size == 65
    context = solution.contexts[0]
    with torch.no_grad():
        found = copied(input_ids=torch.tensor([[*context.before, *range(60, 65), *context.after]])).logits[0, -1]
    torch.testing.assert_close(found[:60], logits(solution, context)[0, :60], rtol=1e-5, atol=1e-5)


class Shifted(torch.nn.Embedding):
    """Does more than to look rows up."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + 1.0


class Capped(torch.nn.Linear):
    """No plain linear map."""


def rolled(*arguments: object) -> FrozenModel:
    """The copy, as if its head had been saved wrongly."""
    loaded = load(*arguments)
    loaded.network.lm_head.weight.data.copy_(loaded.network.lm_head.weight.roll(1, 0))
    return loaded


@pytest.mark.parametrize("why", ["more than to look rows up", "no linear map but a Capped", "logits are others"])
def test_a_model_that_cannot_hold_the_rows_is_refused(tmp_path, monkeypatch, why):
    model = random_model("llama")
    if "look" in why:
        model.network.get_input_embeddings().__class__ = Shifted
    elif "Capped" in why:
        model.network.lm_head.__class__ = Capped
    else:
        monkeypatch.setattr(vocab_rows, "load", rolled)
    with pytest.raises(UserError, match=rf"cannot hold .*{why}.*--format vocab-rows, model random llama"):
        write(solved(model, soft(model)), "vocab-rows", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["prompt-embeds", "vocab-rows"])
def test_a_tokenizer_that_joins_the_text_around_the_slot_is_refused(tmp_path, monkeypatch, form):
    model = random_model("llama")
    solution = solved(model, soft(model))
    inner = Solution.context
    monkeypatch.setattr(Solution, "context", lambda self, text: replace(inner(self, text), after=(7,)))
    with pytest.raises(UserError, match="joins the text around the slot"):
        write(solution, form, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["prompt-embeds", "vocab-rows"])
def test_what_is_no_embeddings_is_refused(tmp_path, form):
    model = random_model("llama")
    for edit in (ResidualEdit(numbers(1, 1, 32), (0,)), KeyValueEdit(numbers(1, 2, 2, 3, 8), numbers(1, 2, 2, 3, 8))):
        with pytest.raises(UserError, match=rf"is no input embeddings \(--format {form}\)"):
            write(solved(model, edit), form, tmp_path / "out")


def test_every_note_says_where_it_came_from(tmp_path):
    model = random_model("llama")
    for form in FORMATS:
        told = note(write(solved(model, soft(model), "start"), form, tmp_path / form))
        assert told["format"] == form
        assert told["model_hash"] == model.weight_hash
        assert (told["slot"], told["context_format"], told["cell"]) == ("start", "chat", "0123456789abcdef")
        assert told["use"]
