"""The same token gradients and candidate losses as nanogcg 0.3.0, another implementation of GCG (MIT licence).

It is installed without its dependencies, whose pins are older than ours; only these two of its methods are asked.
Its loss is in nats and the mean over the tokens of one target, ours in bits and their sum.
"""

from __future__ import annotations

import math

import pytest
import torch
from nanogcg.gcg import GCG, GCGConfig

from leadline.engine import Context, Engine
from leadline.interventions.text_prompt import TextPrompt
from leadline.objective import objective_for
from leadline.priors import generator
from leadline.texts import mean_losses, token_gradient
from models import VOCABULARY, random_model

CONTEXT = Context((1, 3, 9), (12, 4), (20, 21, 2))
BITS = len(CONTEXT.target) / math.log(2)


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


@pytest.fixture(scope="module")
def oracle(model) -> GCG:
    """nanogcg at work on one slot, without its cache, which an edit of ours does not know."""
    model.tokenizer.pad_token = "</s>"
    gcg = GCG(model.network, model.tokenizer, GCGConfig(use_prefix_cache=False, allow_non_ascii=True))
    embed = model.network.get_input_embeddings()
    gcg.before_embeds, gcg.after_embeds, gcg.target_embeds = (
        embed(torch.tensor([part])) for part in (CONTEXT.before, CONTEXT.after, CONTEXT.target)
    )
    gcg.target_ids = torch.tensor([CONTEXT.target])
    return gcg


def test_the_same_token_gradients(model, oracle) -> None:
    for tokens in ([7, 30, 7], [40], [5, 6, 7, 8, 9]):
        ours = token_gradient(objective_for(Engine(model)), [CONTEXT])(torch.tensor(tokens))
        theirs = oracle.compute_token_gradient(torch.tensor([tokens]))[0] * BITS
        assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


def test_the_same_candidate_losses(model, oracle) -> None:
    texts = torch.randint(VOCABULARY, (60, 3), generator=generator("candidates"))
    before, rest = model.embed(torch.tensor(CONTEXT.before)), model.embed(torch.tensor(CONTEXT.after + CONTEXT.target))
    embeds = torch.cat([before.expand(60, -1, -1), model.embed(texts), rest.expand(60, -1, -1)], 1)
    theirs = oracle._compute_candidates_loss_original(16, embeds).double() * BITS
    ours = mean_losses(objective_for(Engine(model)), [CONTEXT], TextPrompt(model, []))(texts)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
