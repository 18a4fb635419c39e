"""Small models for tests: random ones of several architectures, and the wired transformer whose distance is known."""

from __future__ import annotations

import math

import scipy.special
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedTokenizerFast,
)

from leadline.model import FrozenModel
from leadline.probe import Compute

FLOAT32 = Compute("float32", "eager", 1, "tests")
VOCABULARY = 64
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} </s> {% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant> {% endif %}"


def word_tokenizer(
    words: list[str], template: str | None = TEMPLATE, begin: str | None = "<s>"
) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words split at spaces; "</s>" is the end token and must be among them."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", bos_token=begin)
    tokenizer.chat_template = template
    return tokenizer


def words() -> list[str]:
    """A vocabulary of 64 words with the template's own."""
    special = ["<unk>", "<s>", "</s>", "<user>", "<assistant>", "<system>"]
    return special + [f"w{i}" for i in range(VOCABULARY - len(special))]


def frozen(network: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, name: str = "test") -> FrozenModel:
    """A FrozenModel around a network made here."""
    network.requires_grad_(False)
    return FrozenModel(name, name, "", network.eval(), tokenizer, FLOAT32)


def random_model(architecture: str, dtype: torch.dtype = torch.float32) -> FrozenModel:
    """Random weights in the shape of llama, gpt2, neox, gemma (scaled embeddings, soft-capped logits), mistral (sees
    four tokens back) or mpt (a bias by distance in place of positions)."""
    common = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}  # fmt: skip
    torch.manual_seed(0)
    if architecture == "llama":
        network = LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=2, attn_implementation="eager"))
    elif architecture == "neox":
        network = GPTNeoXForCausalLM(GPTNeoXConfig(**common, attn_implementation="eager"))
    elif architecture == "gemma":
        network = Gemma2ForCausalLM(
            Gemma2Config(
                **common, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, attn_implementation="eager"
            )
        )
    elif architecture == "mistral":
        network = MistralForCausalLM(
            MistralConfig(**common, num_key_value_heads=2, sliding_window=4, attn_implementation="eager")
        )
    elif architecture == "mpt":
        network = MptForCausalLM(
            MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=128, bos_token_id=1,
                      eos_token_id=2, attn_implementation="eager")
        )  # fmt: skip
    else:
        network = GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1,
                       eos_token_id=2, attn_implementation="eager")
        )  # fmt: skip
    for parameter in network.parameters():  # fresh weights are so small that every logit is nearly the same
        parameter.data.add_(0.3 * torch.randn(parameter.shape))
    return frozen(network.to(dtype), word_tokenizer(words()), f"random {architecture}")


def cap_distance(cosine: float, dimensions: int) -> float:
    """-log2 of the share of the unit sphere within a cap z_0 / norm(z) >= cosine (docs/measurement.md, K11)."""
    return -math.log2(scipy.special.betainc((dimensions - 1) / 2, 0.5, 1 - cosine**2) / 2)


def cosine_at(distance_bits: float, dimensions: int) -> float:
    """The cosine whose cap lies at this distance."""
    low, high = 0.0, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if cap_distance(middle, dimensions) < distance_bits else (low, middle)
    return (low + high) / 2


def wired_model(
    dimensions: int, distance_bits: float, context_tokens: int, axis: int = 0, blocks: int = 1
) -> FrozenModel:
    """K11: one layer, queries, keys and MLP zero, so attention averages; values read coordinate 0 of the normalised
    inputs and the output writes coordinate 1. The vocabulary is plus and minus the unit vectors, so the prior over one
    soft token is isotropic. After a context that ends with "m1" the reply is "m1", and it flips to "p1" if and only if
    the soft token's z_0 / norm(z) is at least the cosine of `distance_bits`.

    Each context must hold "p3" once: it is copied to coordinate 2, which the head does not read. It only keeps the last
    normalisation from turning the residual into its sign, and so gives solvers a slope.

    context_tokens: how many tokens each context has; with one soft token, the average runs over one more
    axis:           read this coordinate instead of z_0; no context may hold a token of it
    blocks:         how many; those after the first do nothing
    """
    config = LlamaConfig(
        vocab_size=2 * dimensions, hidden_size=dimensions, intermediate_size=4, num_hidden_layers=blocks,
        num_attention_heads=1, head_dim=dimensions, rms_norm_eps=1e-12, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=0, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    for name, parameter in network.named_parameters():
        parameter.data.fill_(1.0 if "norm" in name else 0.0)
    identity = torch.eye(dimensions)
    network.get_input_embeddings().weight.data.copy_(torch.cat([identity, -identity]))
    network.lm_head.weight.data[1, 1], network.lm_head.weight.data[dimensions + 1, 1] = 1.0, -1.0
    attention = network.model.layers[0].self_attn
    attention.v_proj.weight.data[0, axis] = attention.v_proj.weight.data[1, 3] = 1.0
    scale = (context_tokens + 1) / math.sqrt(dimensions)
    attention.o_proj.weight.data[1, 0] = scale / cosine_at(distance_bits, dimensions)
    attention.o_proj.weight.data[2, 1] = 2.0 * scale
    names = ["</s>", *(f"p{i}" for i in range(1, dimensions)), *(f"m{i}" for i in range(dimensions))]
    return frozen(network, word_tokenizer(names, None, None), f"wired {dimensions}")
