"""Small models for tests: random ones of several architectures. The wired transformer is `leadline.selftest.wired`."""

from __future__ import annotations

import torch
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
)

from leadline.model import FrozenModel
from leadline.selftest.wired import (
    FLOAT32,
    TEMPLATE,
    cap_distance,
    cosine_at,
    frozen,
    wired_model,
    word_tokenizer,
)

__all__ = [
    "FLOAT32",
    "TEMPLATE",
    "VOCABULARY",
    "cap_distance",
    "cosine_at",
    "frozen",
    "random_model",
    "wired_model",
    "word_tokenizer",
    "words",
]

VOCABULARY = 64


def words() -> list[str]:
    """A vocabulary of 64 words with the template's own."""
    special = ["<unk>", "<s>", "</s>", "<user>", "<assistant>", "<system>"]
    return special + [f"w{i}" for i in range(VOCABULARY - len(special))]


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
