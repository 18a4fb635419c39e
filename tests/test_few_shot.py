"""few_shot: texts that stop at a blank line have at most all the mass, and what measure() reports of demonstrations is
what transformers alone says of them."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import leadline
from leadline.behaviour import Behaviour, Reply, questions
from leadline.edits import no_edit
from leadline.engine import Context, Engine
from leadline.few_shot import BlankLines, demonstrated, stops
from leadline.items import Item, prepare
from leadline.model import load
from leadline.objective import objective_for
from leadline.places import places
from leadline.priors import generator
from leadline.slot import Renderer
from leadline.solution import find
from leadline.spec import RunSpec, UserError
from leadline.texts import Ragged, TextPrior, padded
from models import frozen

# After "Q: " the tiny model copies, not well, what follows: its reply begins as the question shown does.
W = Behaviour(name="w", reply=Reply(text="W"), ends=False)
SMALL = {"family": "few_shot", "sizes": (1, 2), "items": 10, "draws": 64, "controls": 0, "scale": "ci"}
SIGNS = ["</s>", "a", "\n", "\n\n", "a\n", "b"]


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    return load(str(tiny_model_folder))


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few") / "run"
    result = leadline.measure(tiny, W, folder, **SMALL)
    return result, folder, json.loads((folder / "items.json").read_text())["tasks"][0]["items"]


@pytest.fixture(scope="module")
def lines():
    """A random model of six tokens, four of which hold line breaks."""
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(SIGNS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=16, bos_token_id=0, eos_token_id=0, attn_implementation="eager")
    )  # fmt: skip
    for parameter in network.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape))
    inner = Tokenizer(models.BPE({sign: i for i, sign in enumerate(SIGNS)}, [("\n", "\n"), ("a", "\n")]))
    inner.decoder = decoders.Fuse()
    return frozen(network, PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", bos_token="</s>"))


def begins_with_w(model, message: str) -> bool:
    """Whether the model's reply to a message begins so, by transformers alone."""
    chat = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([model.tokenizer(chat, add_special_tokens=False)["input_ids"]])
    return model.tokenizer.decode([int(model.network(ids).logits[0, -1].argmax())]) == "W"


@pytest.mark.parametrize("size", [1, 2])
def test_texts_that_stop_at_a_blank_line_are_never_counted_twice(lines, size: int) -> None:
    """All texts of at most five tokens that stop, and all of five that have not stopped by then, have mass 1 together;
    which of them stop is told here by reading them one token after the other."""
    prior, longest = BlankLines(TextPrior(lines, (0, 1))), 5
    mass, stopped = 0.0, 0
    for length in range(1, longest + 1):
        counted = []
        for text in itertools.product(range(len(SIGNS)), repeat=length):
            written = ["".join(SIGNS[token] for token in text[:upto]).count("\n\n") for upto in range(length + 1)]
            before = any(found >= size for found in written[:-1])
            assert stops(lines, text, size) == (written[-1] >= size and not before)
            if not before and (written[-1] >= size or length == longest):
                counted.append(text)
                stopped += written[-1] >= size
        if counted:
            mass += float(torch.exp2(-prior.surprisal_bits(torch.tensor(counted))).sum())
    assert stopped > 100
    assert mass == pytest.approx(1.0, abs=1e-5)


def test_texts_of_several_lengths_in_one_batch_are_scored_as_each_alone(tiny) -> None:
    texts, target = [[81, 58, 10], [81], [81, 58, 32, 87, 10]], (87, tiny.end_of_reply)
    contexts = [Context((257, 260), (72, 105, 258), target)] * 3
    objective = objective_for(Engine(tiny))
    found, _ = objective.evaluate(contexts, Ragged(tiny).edit(padded(texts)))
    nothing = no_edit(1, tiny.hidden_size, tiny.network.dtype, tiny.device)
    wanted = [
        float(objective.evaluate([Context((257, 260, *text), (72, 105, 258), target)], nothing)[0]) for text in texts
    ]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=1e-4)


def test_a_demonstration_has_no_blank_line_of_its_own_and_can_be_typed(tiny) -> None:
    around = places(Renderer(tiny, "before_user"), W)[:3]
    context = Context((), (), ())
    shown = [("Why?", "no"), ("a\n\nb", "no"), ("ends\n", "no"), ("Why?", "no\n"), ("caf\u00e9", "no")]
    items = [Item(question, reply, context) for question, reply in shown]
    found = demonstrated(tiny, around, items, 1, 60, generator("demonstrations"))
    assert [tiny.tokenizer.decode(text) for text in found] == ["Q: Why?\nA: no\n\n"]
    both = demonstrated(tiny, around, [items[0], Item("How?", "yes", context)], 2, 60, generator("two"))
    assert len(both) == 4
    assert "Q: Why?\nA: no\n\nQ: How?\nA: yes\n\n" in map(tiny.tokenizer.decode, both)


def test_a_slot_that_trims_blank_lines_is_refused(tiny) -> None:
    template = tiny.tokenizer.chat_template.replace("message['content']", "message['content'] | trim")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer.backend_tokenizer, eos_token="<|end|>", chat_template=template
    )
    trimming, spec = frozen(tiny.network, tokenizer), RunSpec(family="few_shot", sizes=(1,), items=10, controls=0)
    prepare(trimming, W, spec)  # the blank line stands between the text and the question
    with pytest.raises(UserError, match=r"does not keep in every context \(--family few_shot, slot after_user\)"):
        prepare(trimming, W.model_copy(update={"slot": "after_user"}), spec)


def test_demonstrations_that_do_not_fit_into_the_window_are_refused_before_anything_is_begun(tiny, tmp_path) -> None:
    with pytest.raises(UserError, match="do not fit into the model's window of 256"):
        leadline.measure(tiny, W, tmp_path / "run", **{**SMALL, "sizes": (1, 8)})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [1, 2])
def test_the_demonstrations_pasted_into_a_fresh_chat_score_what_was_reported(tiny, run, size: int) -> None:
    result, _, items = run
    text = result.spec["extra"]["texts"][f"/few_shot/{size}"]
    shown = [pair.removeprefix("Q: ").partition("\nA: ") for pair in text.removesuffix("\n\n").split("\n\n")]
    assert len(shown) == size
    assert {reply for _, _, reply in shown} == {"W"}
    assert {question for question, _, _ in shown} <= {item["prompt"] for item in items["train"]}

    point = result.points.filter(family="few_shot", size=size, split="test", estimator="", chosen=True)
    right = [begins_with_w(tiny, text + item["prompt"]) for item in items["test"]]
    assert point["score"].item() == pytest.approx(sum(right) / len(right))
    assert sum(right) >= 9
    assert sum(begins_with_w(tiny, item["prompt"]) for item in items["test"]) == 0


@pytest.mark.parametrize("size", [1, 2])
def test_text_is_the_mass_of_the_demonstrations_that_hold(tiny, run, size: int) -> None:
    """Every text that held on validation items, typed and priced by transformers alone."""
    result, folder, items = run
    records = [json.loads(path.read_text()) for path in (folder / "cells").glob("*/record.json")]
    texts = [text for r in records if r["points"][0]["size"] == size for text in r.get("texts", [])]
    before, mass, holding = items["test"][0]["context"]["before"], 0.0, 0
    for text in texts:
        string = tiny.tokenizer.decode(text)
        assert string.count("\n\n") == size
        if sum(begins_with_w(tiny, string + item["prompt"]) for item in items["test"]) < 9:
            continue
        logits = tiny.network(torch.tensor([[*before, *text]])).logits[0].double().log_softmax(-1)
        mass += math.exp(sum(float(logits[len(before) - 1 + place, token]) for place, token in enumerate(text)))
        holding += 1
    found = result.points.filter(family="few_shot", estimator="TEXT", size=size).row(0, named=True)
    assert found["upper_bits"] == pytest.approx(-math.log2(mass), abs=1e-3)
    assert (found["p_hits"], found["kind"]) == (holding, "certified upper")


def test_the_solution_of_a_run_is_those_demonstrations(tiny, run) -> None:
    result, folder, _ = run
    for size in (1, 2):
        text = result.spec["extra"]["texts"][f"/few_shot/{size}"]
        tokens = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = find(folder, size)
        assert found.edit.lengths == (len(tokens),)
        torch.testing.assert_close(found.edit.values, tiny.embed(torch.tensor([tokens])))


def test_there_is_no_lower_bound_and_the_size_is_paid_for(run) -> None:
    result, _, _ = run
    distance = result.distance()
    assert distance.lower is None
    assert distance.upper.estimator == "TEXT"
    assert "size choice" in dict(distance.upper.ledger)
    assert distance.prior.startswith(BlankLines.name)


def test_replies_that_hold_a_blank_line_cannot_be_demonstrated_and_that_is_an_outcome(tiny, tmp_path):
    own = Behaviour(name="blank", contexts=questions()[:40], reply=Reply(text="a\n\nb"))
    result = leadline.measure(
        tiny, own, tmp_path / "run", family="few_shot", sizes=(1,), controls=0, items=10, draws=64, prior_draws=0,
        scale="ci",
    )  # fmt: skip
    assert result.points.filter(family="few_shot").is_empty()
    assert "few_shot" not in result.families
