"""FrozenModel: what is loaded and what is refused, that nothing changes it, and what it knows about itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

import leadline
from commands import FEW, save
from leadline import plan, smollm2
from leadline.behaviour import Behaviour, Reply
from leadline.model import FrozenModel, load
from leadline.probe import Compute, has_fused_attention
from leadline.spec import UserError
from models import TEMPLATE, frozen, random_model, word_tokenizer, words

ARCHITECTURES = ("llama", "gpt2", "neox", "gemma", "mistral", "mpt")
FLOAT32 = Compute("float32", "eager", 1, "tests")


@pytest.fixture
def folder(tmp_path) -> Path:
    made = random_model("llama")
    return save(tmp_path / "llama", made.network, made.tokenizer)


# Loading


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_gives_the_weights_it_holds(tmp_path, architecture):
    made = random_model(architecture)
    loaded = load(str(save(tmp_path / architecture, made.network, made.tokenizer)), FLOAT32)
    assert loaded.weight_hash == made.weight_hash
    assert loaded.tokenizer_hash == made.tokenizer_hash
    assert loaded.template_hash == made.template_hash
    assert not loaded.network.training
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_without_fused_attention_is_no_hindrance(tmp_path, architecture):
    """transformers has no sdpa for some architectures (gemma's soft cap, mpt's biases) and raises where it is asked."""
    made = random_model(architecture)
    where = str(save(tmp_path / architecture, made.network, made.tokenizer))
    for asked in ("auto", "float32,eager,1"):
        assert load(where, asked).compute.attention == "eager"
    if not has_fused_attention(made.network):
        for way in ("sdpa", "blockwise"):
            with pytest.raises(UserError, match=rf"no {way} attention .*Ask for eager"):
                load(where, way)


def test_more_threads_than_cores_are_refused():
    with pytest.raises(UserError, match=r"This machine has \d+ cores \(--model organism:tiny, --compute 999\)"):
        load("organism:tiny", "999")


def test_a_pass_of_a_tiny_model_is_run_on_one_thread_and_loading_it_changes_no_other(folder):
    torch.set_num_threads(3)
    model = load(str(folder))
    assert (model.compute.threads, model.threads_of_one_pass, torch.get_num_threads()) == (3, 1, 3)
    assert load(str(folder), "2").compute.threads == 2


def test_pickled_weights_are_never_read(folder):
    """Not even where the index of a sharded model names them, nor beside safetensors of something else."""
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04\x95 a pickle that would run code")
    with pytest.raises(UserError, match="No model could be loaded"):
        load(str(folder), FLOAT32)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="pickled weights are never read"):
        load(str(folder), FLOAT32)


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({mark!r}).touch()
class OddConfig(LlamaConfig):
    model_type = "odd"
class OddModel(LlamaForCausalLM):
    config_class = OddConfig
"""


def test_code_that_comes_with_a_model_runs_only_where_it_is_trusted(folder, tmp_path, monkeypatch):
    mark = tmp_path / "it ran"
    (folder / "odd.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(UserError, match="No model could be loaded"):
        load(str(folder), FLOAT32)
    assert not mark.exists()
    trusted = load(str(folder), trust_remote_code=True)
    assert mark.exists()
    assert type(trusted.network).__name__ == "OddModel"
    assert type(trusted.with_compute(Compute("bfloat16", "eager", 1, "")).network).__name__ == "OddModel"


def test_weights_are_not_filled_with_random_numbers(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"The weights lack model.layers.2.\S+ and 8 more"):
        load(str(folder), FLOAT32)


def test_a_number_that_is_not_finite_is_no_reason_to_refuse(folder):
    made = random_model("llama")
    made.network.model.norm.weight.data[0] = float("nan")
    assert load(str(save(folder, made.network, made.tokenizer)), FLOAT32).hidden_size == 32


def test_a_tokenizer_without_a_fast_version_is_refused(folder, monkeypatch):
    slow = word_tokenizer(words())
    monkeypatch.setattr(type(slow), "is_fast", False)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: slow)
    with pytest.raises(UserError, match="no fast"):
        load(str(folder), FLOAT32)


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device"), RuntimeError("")])
def test_what_goes_wrong_elsewhere_is_said_as_what_it_is(folder, monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises((UserError, MemoryError)) as caught:
        load(str(folder), FLOAT32)
    said = str(caught.value)
    assert isinstance(error, MemoryError) == isinstance(caught.value, MemoryError)
    assert isinstance(error, MemoryError) or ("LEADLINE_CACHE" in said) == isinstance(error, OSError)


# Frozen


def test_a_measurement_leaves_every_weight_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(3, 3, 2, 1, 2, 1, 8, 64))
    model = random_model("llama")
    contexts = tuple(f"w{i} w{j}" for i in range(6) for j in range(6))
    behaviour = Behaviour(name="word", contexts=contexts, reply=Reply(text="w3"))
    leadline.measure(model, behaviour, tmp_path / "run", sizes=(1, 2), controls=1, items=4, draws=64, prior_draws=8,
                     scale="ci")  # fmt: skip
    assert replace(model).weight_hash == model.weight_hash, "hashed again, and as it was before"
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_the_hash_sees_every_weight():
    model = random_model("llama")
    hashes = {model.weight_hash}
    for parameter in model.network.parameters():
        before = parameter.data.flatten()[-1].clone()
        parameter.data.view(-1)[-1] += 1e-3
        hashes.add(replace(model).weight_hash)
        parameter.data.view(-1)[-1] = before
    count = len(list(model.network.parameters()))
    assert len(hashes) == 1 + count
    assert replace(model).weight_hash == model.weight_hash


def test_with_compute_is_the_same_model_in_another_dtype(folder):
    model = load(str(folder), FLOAT32)
    assert model.with_compute(FLOAT32) is model
    low = model.with_compute(Compute("bfloat16", "sdpa", 1, "tests"))
    assert low.network.dtype == torch.bfloat16
    assert low.network.config._attn_implementation == "sdpa"
    assert low.weight_hash != model.weight_hash
    assert low.with_compute(FLOAT32).weight_hash == model.weight_hash, "nothing was rounded on the way"


# Wrapped: loaded by somebody else

WORD = {"sizes": (1,), "controls": 0, "items": 4, "draws": 64, "prior_draws": 8, "scale": "ci"}


def word() -> Behaviour:
    contexts = tuple(f"w{i} w{j}" for i in range(6) for j in range(6))
    return Behaviour(name="word", contexts=contexts, reply=Reply(text="w3"))


def test_a_model_that_is_loaded_already_measures_as_its_folder_does_and_continues(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(plan.BUDGETS, "ci", FEW)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").train()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = FrozenModel.wrap(network, tokenizer)
    assert model.name == str(folder)
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.training
    said = leadline.measure(model, word(), tmp_path / "wrapped", **WORD)
    from_folder = leadline.measure(load(str(folder), model.compute), word(), tmp_path / "folder", **WORD)
    same = [name for name in said.points.columns if name not in ("wall_seconds", "key", "batch")]
    assert said.points.select(same).equals(from_folder.points.select(same))
    again = leadline.measure(FrozenModel.wrap(network, tokenizer), word(), tmp_path / "wrapped", **WORD)
    assert again.points.equals(said.points)
    network.lm_head.weight.data[0, 0] += 1.0
    with pytest.raises(UserError, match="began with another set of weights"):
        leadline.measure(FrozenModel.wrap(network, tokenizer), word(), tmp_path / "wrapped", **WORD)


def test_a_wrapped_model_is_what_it_was_rounded_to(folder):
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = FrozenModel.wrap(network, transformers.AutoTokenizer.from_pretrained(folder), "mine")
    assert (model.name, model.compute.dtype) == ("mine", "bfloat16")
    exact = model.exact("tests")
    assert exact.network.dtype == torch.float32
    assert model.network is network
    assert network.dtype == torch.bfloat16, "a copy is cast, not what the caller holds"
    head = [each.network.lm_head.weight.float() for each in (model, exact)]
    assert torch.equal(*head)


def test_quantized_weights_stay_what_they_are_and_carry_no_adapters(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(plan.BUDGETS, "ci", FEW)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    network.is_quantized = True
    model = FrozenModel.wrap(network, transformers.AutoTokenizer.from_pretrained(folder))
    assert model.exact("tests") is model
    assert leadline.measure(model, word(), tmp_path / "run", **WORD).families[0] == "soft_prompt"
    with pytest.raises(UserError, match="Quantized weights have no norm to measure a change by"):
        leadline.measure(model, word(), tmp_path / "lora", family="lora", **WORD)


# What it knows about itself


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_are_found_by_structure(architecture):
    model = random_model(architecture)
    assert len(model.layers) == 2
    seen = []
    handles = [layer.register_forward_hook(lambda *_: seen.append(1)) for layer in model.layers]
    with torch.no_grad():
        logits = model.network(input_ids=torch.tensor([[3, 4]])).logits
    for handle in handles:
        handle.remove()
    assert seen == [1, 1]
    assert logits.shape[-1] == model.head.weight.shape[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_prior_is_that_of_the_embeddings_as_the_first_block_sees_them(architecture):
    """Gemma scales its embeddings inside its embedding module; the statistics must see that."""
    model = random_model(architecture)
    seen = []
    handle = model.layers[0].register_forward_pre_hook(lambda _, inputs, named: seen.append(
        inputs[0] if inputs else named["hidden_states"]), with_kwargs=True)  # fmt: skip
    with torch.no_grad():
        model.network(inputs_embeds=model.embed(torch.arange(64)[None]))
    handle.remove()
    if architecture == "gpt2":  # positions are added on the way
        seen[0] = seen[0] - model.network.transformer.wpe.weight[:64]
    mean, scale = model.embedding_statistics()
    torch.testing.assert_close(mean, seen[0][0].mean(0))
    torch.testing.assert_close(scale, seen[0][0].std(0, correction=0))
    assert mean.shape == scale.shape == (model.hidden_size,)


def test_the_window_is_the_one_of_the_configuration():
    assert random_model("gpt2").window == 128
    assert random_model("llama").window == 2048


@pytest.mark.parametrize(
    ("template", "token"),
    [
        (TEMPLATE, "</s>"),
        (TEMPLATE.replace("</s>", "w9"), "w9"),
        (TEMPLATE.replace("</s>", "w8 w9"), "w8"),
        (TEMPLATE.replace(" </s>", ""), "</s>"),  # it writes nothing after a reply
        (
            "{% for m in messages %}{{ m['content'] | upper }} w9 {% endfor %}",
            "</s>",
        ),  # the reply is not in it as it is
        (None, "</s>"),
    ],
)
def test_the_end_of_a_reply_is_what_the_template_writes_after_it(template, token):
    model = random_model("llama")
    model = frozen(model.network, word_tokenizer(words(), template))
    assert model.end_of_reply == words().index(token)
    assert {model.end_of_reply, 2} >= set(model.end_tokens) >= {model.end_of_reply}


def test_a_tokenizer_without_any_end_is_refused():
    tokenizer = word_tokenizer(words(), None)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-text token"):
        _ = frozen(random_model("llama").network, tokenizer).end_of_reply


def test_all_stated_end_tokens_end_a_reply():
    model = random_model("llama")
    model.network.generation_config.eos_token_id = [7, 8]
    assert replace(model).end_tokens == {2, 7, 8}


def test_the_start_of_an_empty_context():
    network = random_model("llama").network
    assert frozen(network, word_tokenizer(words())).start_token == words().index("<s>")
    assert frozen(network, word_tokenizer(words(), begin=None)).start_token == words().index("</s>")


def test_several_templates_are_hashed_as_well():
    network, tokenizer = random_model("llama").network, word_tokenizer(words())
    one = frozen(network, tokenizer).template_hash
    tokenizer.chat_template = {"default": TEMPLATE, "tools": "x"}
    other = frozen(network, tokenizer).template_hash
    tokenizer.chat_template = {"tools": "y", "default": TEMPLATE}
    assert len({one, other, frozen(network, tokenizer).template_hash}) == 3


# GGUF


def write_gguf(path: Path, model: FrozenModel) -> None:
    """A GGUF file of a random Llama in float32, with a byte-level vocabulary."""
    config = model.network.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<unk>", "<s>", "</s>", *(chr(ord("A") + i) for i in range(config.vocab_size - 4)), "AB"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
             "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
             "model.layers.": "blk."}  # fmt: skip
    for name, tensor in model.network.state_dict().items():
        array = tensor.numpy()
        for heads, part in ((config.num_attention_heads, "q_proj"), (config.num_key_value_heads, "k_proj")):
            if part in name:  # GGUF stores rotary pairs side by side, Hugging Face in two halves
                rows = array.shape[0] // heads // 2
                array = array.reshape(heads, 2, rows, -1).swapaxes(1, 2).reshape(array.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_unpacked_once_into_the_cache_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path / "cache"))
    made, path = random_model("llama"), tmp_path / "model.gguf"
    write_gguf(path, made)
    loaded = load(f"gguf:{path}", FLOAT32)
    assert loaded.weight_hash == made.weight_hash
    (unpacked,) = (tmp_path / "cache").glob("gguf-*")
    assert loaded.source == str(unpacked)
    monkeypatch.setattr(smollm2.transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: made.tokenizer)
    assert load(f"gguf:{path}", FLOAT32).weight_hash == made.weight_hash, "read from the cache"
    for name in ("model.safetensors", "config.json", "sha256.json"):
        whole = (unpacked / name).read_bytes()
        (unpacked / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"Cached weights are damaged \({unpacked / name}\)"):
            load(f"gguf:{path}", FLOAT32)
        (unpacked / name).write_bytes(whole)
    load(f"gguf:{path}", FLOAT32)


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model("llama"))
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("LEADLINE_CACHE", str(place))
        with pytest.raises(UserError, match=rf"The cache cannot be written: .* \({place}\)\. Make room"):
            load(f"gguf:{path}", FLOAT32)
