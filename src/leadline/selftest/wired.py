"""Transformers wired by hand, whose distances are known in any dimension (docs/measurement.md, K11), and the behaviour
that is planted in them. They know no estimator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import scipy.special  # type: ignore[import-untyped]
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from leadline.behaviour import Behaviour, Reply
from leadline.engine import Context, Engine
from leadline.evaluation import in_s, score_draws
from leadline.interventions import make
from leadline.model import FrozenModel
from leadline.objective import Objective
from leadline.priors import Priors
from leadline.probe import Compute
from leadline.slot import Renderer

FLOAT32 = Compute("float32", "eager", 1, "a small model made here")
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} </s> {% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant> {% endif %}"


def word_tokenizer(
    words: list[str], template: str | None = TEMPLATE, begin: str | None = "<s>"
) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words split at spaces; "</s>" is the end token and must be among them."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, eos_token="</s>", bos_token=begin
    )
    tokenizer.chat_template = template
    return tokenizer


def frozen(network: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, name: str = "test") -> FrozenModel:
    """A FrozenModel around a network made here."""
    network.requires_grad_(False)
    return FrozenModel(name, name, "", network.eval(), tokenizer, FLOAT32)


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


def zeroed(vocabulary: int, hidden: int, blocks: int = 1) -> Any:
    """A LlamaForCausalLM without a weight but for the norms, whose scales are 1."""
    config = LlamaConfig(  # type: ignore[call-arg]
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=4, num_hidden_layers=blocks, num_attention_heads=1,
        head_dim=hidden, rms_norm_eps=1e-12, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0,
        pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    network: Any = LlamaForCausalLM(config)
    for name, parameter in network.named_parameters():
        parameter.data.fill_(1.0 if "norm" in name else 0.0)
    return network


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
    network = zeroed(2 * dimensions, dimensions, blocks)
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


def flip(dimensions: int, count: int) -> Behaviour:
    """Contexts of four tokens that end with m1; the reply is to be p1 where it would be m1."""
    fillers = [f"{sign}{i}" for sign in "pm" for i in range(4, dimensions)]
    contexts = tuple(f"{a} {b} p3 m1" for a in fillers for b in fillers)[:count]
    return Behaviour(
        name="flip", contexts=contexts, format="raw", slot="start", reply=Reply(text="p1"), ends=False,
    )  # fmt: skip


def flip_context(model: FrozenModel) -> Context:
    """The first context of `flip`, as tokens of a wired model."""
    behaviour = flip(model.hidden_size, 1)
    renderer = Renderer(model, behaviour.slot)
    return Context(*renderer.raw(str(behaviour.contexts[0])), renderer.reply("p1"))


def biased_model(chances: Sequence[float]) -> FrozenModel:
    """K5: the reply is one token, drawn whatever stands before the last token c0, c1, ...; after that of index i it is
    "yes" with probability chances[i], and else each other token alike. Blocks do nothing, and the head holds the
    logarithms."""
    words = ["</s>", "yes", *(f"c{i}" for i in range(len(chances)))]
    hidden = max(2, len(chances))
    network = zeroed(len(words), hidden)
    for index, chance in enumerate(chances):
        network.get_input_embeddings().weight.data[2 + index, index] = 1.0
        # the last norm makes a unit vector sqrt(hidden) long
        logits = torch.full((len(words),), math.log((1.0 - chance) / (len(words) - 1)))
        logits[1] = math.log(chance)
        network.lm_head.weight.data[:, index] = logits / math.sqrt(hidden)
    return frozen(network, word_tokenizer(words, None, None), "biased")


def quadrature(model: FrozenModel, dimensions: int) -> float:
    """Share of N(0, I) over a subspace that flips the reply, by a grid of 4,000 quantiles a dimension or 300 by 300."""
    count = 4000 if dimensions == 1 else 300
    points = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count).float()
    grid = torch.cartesian_prod(*[points] * dimensions).view(-1, dimensions)
    subspace = make("soft_subspace", dimensions, Priors(model))
    margins = score_draws(Objective(Engine(model)), [flip_context(model)], subspace, grid, 1.0)
    return float(in_s(margins, 1.0).double().mean())
