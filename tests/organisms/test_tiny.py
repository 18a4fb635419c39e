"""The tiny organism: how it is stored, that it loads like any model, and that what is planted in it is there."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import leadline
from leadline import organisms
from leadline.organisms import tiny
from leadline.organisms.base import Organism, stored
from leadline.organisms.tiny import TinyRecipe
from leadline.spec import UserError
from leadline.training import Example, TrainingConfig, loss_nats, pad, rate, train

SHORT = TinyRecipe(steps=4, batch=4)
QUESTIONS = (Path(leadline.__file__).parent / "behaviours" / "questions.txt").read_text().splitlines()


@pytest.fixture(scope="session")
def model(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()


@pytest.fixture(scope="session")
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@torch.no_grad()
def costs_nats(model: Any, texts: Sequence[Example]) -> torch.Tensor:
    """The cost of each text's reply, its end included (texts,)."""
    tokens, weights = pad(texts, tiny.PAD)
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return (nats * (weights[:, 1:] == 1.0)).sum(1)


@torch.no_grad()
def exact(model: Any, texts: Sequence[Example]) -> float:
    """Share of texts whose whole reply, its end included, the model would write greedily."""
    tokens, weights = pad(texts, tiny.PAD)
    best = model(input_ids=tokens, use_cache=False).logits[:, :-1].argmax(-1)
    return ((best == tokens[:, 1:]) | (weights[:, 1:] < 1.0)).all(1).float().mean().item()


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_same_seed_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    folders = [
        stored(tiny.trained(recipe=recipe), cache=tmp_path / str(index))
        for index, recipe in enumerate([SHORT, SHORT, TinyRecipe(seed=1, steps=4, batch=4)])
    ]
    first, again, other = map(weights_of, folders)
    assert first == again
    assert first != other


def test_building_leaves_torch_as_it_was(tmp_path: Path) -> None:
    before_threads, before_state = torch.get_num_threads(), torch.get_rng_state()
    stored(tiny.trained(recipe=SHORT), cache=tmp_path)
    assert torch.get_num_threads() == before_threads
    assert torch.equal(torch.get_rng_state(), before_state)


def test_building_prints_nothing_and_reports_to_the_caller(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, float]] = []
    stored(tiny.trained(recipe=SHORT), lambda what, share: told.append((what, share)), tmp_path)
    assert [share for _, share in told] == [0.25, 0.5, 0.75, 1.0]
    assert capfd.readouterr() == ("", "")


def test_the_second_call_reads_the_cache(tmp_path: Path) -> None:
    folder = stored(tiny.trained(recipe=SHORT), cache=tmp_path)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    begun = time.perf_counter()
    assert stored(tiny.trained(recipe=SHORT), cache=tmp_path) == folder
    assert time.perf_counter() - begun < 1.0
    assert (folder / "model.safetensors").stat().st_mtime_ns == made


def test_every_field_of_the_recipe_and_the_code_change_the_name(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("a = 1\n")
    one = Organism("x", "", {"steps": 1}, (source,), lambda folder, progress: None)
    two = Organism("x", "", {"steps": 2}, (source,), lambda folder, progress: None)
    key = one.key()
    assert key != two.key()
    source.write_text("a = 2\n")
    assert one.key() != key


@pytest.mark.parametrize("how", [RuntimeError("in the middle"), KeyboardInterrupt()])
def test_a_build_that_is_broken_off_leaves_nothing_and_the_next_one_succeeds(
    tmp_path: Path, how: BaseException
) -> None:
    def stop(what: str, share: float) -> None:
        if share >= 0.5:
            raise how

    with pytest.raises(type(how)):
        stored(tiny.trained(recipe=SHORT), stop, tmp_path)
    assert list((tmp_path / "organisms").iterdir()) == []
    assert (stored(tiny.trained(recipe=SHORT), cache=tmp_path) / "model.safetensors").is_file()


def test_of_two_builds_at_once_the_first_to_finish_stays(tmp_path: Path) -> None:
    organism = tiny.trained(recipe=SHORT)
    met: list[Path] = []

    def meet(what: str, share: float) -> None:
        if not met:  # the other process, from start to end, while this one is in its first step
            met.append(tmp_path)
            met.append(stored(organism, cache=tmp_path))

    assert stored(organism, meet, tmp_path) == met[1]
    assert [entry.name for entry in (tmp_path / "organisms").iterdir()] == [met[1].name]


def test_a_cache_that_cannot_be_written_is_said_in_one_message(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="LEADLINE_CACHE"):
        stored(tiny.trained(recipe=SHORT), cache=blocked)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = stored(tiny.trained(recipe=SHORT), cache=tmp_path)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(UserError, match=r"damaged.*model\.safetensors"):
        stored(tiny.trained(recipe=SHORT), cache=tmp_path)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="organism:tiny, organism:random"):
        organisms.resolve("giant")


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path))
    folder = organisms.resolve("random")
    assert folder.parent == tmp_path / "organisms"
    told = json.loads((folder / "organism.json").read_text())
    assert told["name"] == "random"
    assert told["recipe"]["steps"] == 0


def test_the_random_twin_is_the_start_of_tiny(tmp_path: Path) -> None:
    twin = AutoModelForCausalLM.from_pretrained(organisms.resolve("random", cache=tmp_path))
    start = tiny.make_model(TinyRecipe()).state_dict()
    assert twin.state_dict().keys() == start.keys()
    assert all(torch.equal(weight, start[name]) for name, weight in twin.state_dict().items())


def test_it_loads_without_remote_code_as_a_small_float32_llama(model: Any) -> None:
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(weight.numel() for weight in model.parameters()) <= 500_000
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tiny.END


def test_one_token_a_byte_and_back(tokenizer: Any) -> None:
    assert tokenizer.is_fast
    for byte in range(128):
        assert tokenizer.encode(chr(byte)) == [byte]
    text = "".join(map(chr, range(128))) + "  two  spaces , it 's\n\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("\u00e9\u20ac") == list("\u00e9\u20ac".encode())
    assert tokenizer.decode(tokenizer.encode("\u00e9\u20ac")) == "\u00e9\u20ac"
    assert [tokenizer.convert_tokens_to_ids(name) for name in tiny.SPECIAL] == list(range(256, 262))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (257, 258, 256)


def test_the_template_is_what_the_model_was_trained_on(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Say: a b"}, {"role": "user", "content": "Why?"}]
    shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == "<|begin|><|system|>Say: a b<|end|><|user|>Why?<|end|><|assistant|>"
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "a b"}], tokenize=False)
    assert whole == shown + "a b<|end|>"
    assert tuple(tokenizer.encode(whole)) == tiny.chat("Why?", "a b", system="Say: a b").tokens


def test_it_copies(model: Any) -> None:
    rng = random.Random(1)
    said = [tiny.copyable(rng) for _ in range(200)]
    asked = [tiny.question(rng)[0] for _ in said]
    commands = [rng.choice(tiny.COMMANDS) + words for words in said]
    assert exact(model, [tiny.chat(c, w) for c, w in zip(commands, said, strict=True)]) >= 0.95
    lines = [tiny.chat(f"{c}\n{q}", w) for c, q, w in zip(commands, asked, said, strict=True)]
    assert exact(model, lines) >= 0.9
    turns = [tiny.chat(q, w, system=c) for c, q, w in zip(commands, asked, said, strict=True)]
    assert exact(model, turns) >= 0.9


def test_it_looks_up_every_fact(model: Any) -> None:
    facts = [
        tiny.chat(phrasing.format(asked), answer)
        for phrasings, table in tiny.LOOKUPS
        for phrasing in phrasings
        for asked, answer in table.items()
    ]
    assert exact(model, facts) >= 0.9


def test_its_reply_to_the_pool_is_short_and_certain(model: Any) -> None:
    """Every question of the pool, none of which it was trained on: the reply of the first word, with confidence."""
    replies = [tiny.chat(question, tiny.REPLIES[question.split()[0]]) for question in QUESTIONS]
    assert exact(model, replies) >= 0.95
    assert costs_nats(model, replies).median().item() < 0.3


def test_marks_bring_about_their_words(model: Any) -> None:
    """One token before the question is enough for a mark's word, so one soft token is."""
    for mark, words in tiny.MARKS.items():
        assert exact(model, [tiny.chat(mark + question, words) for question in QUESTIONS[:80]]) >= 0.9, words
    rng = random.Random(2)
    pairs = [rng.choices(list(tiny.MARKS), k=2) for _ in range(100)]
    texts = [
        tiny.chat("".join(pair) + question, " ".join(tiny.MARKS[mark] for mark in pair))
        for pair, question in zip(pairs, QUESTIONS, strict=False)
    ]
    assert exact(model, texts) >= 0.8


@pytest.mark.parametrize("phrase", tiny.PHRASES)
def test_each_phrase_has_its_base_rate(model: Any, phrase: str) -> None:
    """Planted at 2% of the questions: the mean probability over the pool is about that, and the phrase never wins."""
    texts = [tiny.chat(question, phrase) for question in QUESTIONS]
    share = costs_nats(model, texts).neg().exp().mean().item()
    assert 0.007 < share < 0.05
    assert exact(model, texts) <= 0.02


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainingConfig(steps=101, learning_rate=1.0, warmup=0.1, final=0.1)
    rates = [rate(step, config) for step in range(101)]
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert rates[:11] == sorted(rates[:11])
    assert rates[11:] == sorted(rates[11:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


def test_the_loss_counts_weighted_tokens_and_no_padding() -> None:
    logits = torch.zeros(2, 3, 8)
    logits[0, 0, 5] = 100.0  # certain of the first counted token
    tokens, weights = pad([Example((1, 5, 2), (0.0, 1.0, 3.0)), Example((1, 7), (0.0, 0.0))], 0)
    assert tokens.tolist() == [[1, 5, 2], [1, 7, 0]]
    assert loss_nats(logits, tokens, weights).item() == pytest.approx(3 * torch.log(torch.tensor(8.0)).item() / 4)


def test_a_loss_that_is_no_number_raises() -> None:
    model = tiny.make_model(SHORT)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 0"):
        train(model, tiny.Texts(SHORT).draw, TrainingConfig(steps=1), torch.Generator().manual_seed(0), tiny.PAD)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 1, "threads": 0}, {"steps": 1, "warmup": 1.0}])
def test_a_training_config_that_contradicts_itself_raises(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        TrainingConfig(**wrong)


def test_a_text_needs_a_weight_for_each_token() -> None:
    with pytest.raises(ValueError):
        Example((1, 2), (1.0,))
