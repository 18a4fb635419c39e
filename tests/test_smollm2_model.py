"""The real model: its template, its slot, and one soft token that makes it say one word (K8)."""

from __future__ import annotations

import os

import pytest
import torch

from leadline import smollm2
from leadline.behaviour import Behaviour, Reply
from leadline.engine import Engine, shared_prefix
from leadline.evaluation import score_latents, score_null
from leadline.interventions import make
from leadline.interventions.base import edit
from leadline.items import prepare
from leadline.measurement import minibatch
from leadline.model import load
from leadline.objective import objective_for
from leadline.priors import Priors
from leadline.scoring import hits
from leadline.solvers import solver_for
from leadline.solvers.base import Row, begin, train
from leadline.spec import RunSpec, UserError

pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
def model():
    try:
        smollm2.require()
    except UserError as missing:
        if os.environ.get("LEADLINE_REQUIRE_SMOLLM2") == "1":
            raise
        pytest.skip(str(missing))
    threads = torch.get_num_threads()
    yield load("smollm2")
    torch.set_num_threads(threads)


def test_one_soft_token_removes_85_percent_of_a_one_token_reply(model):
    word = Behaviour(name="word", reply=Reply(text="Yes"))
    task = prepare(model, word, RunSpec(items=12, controls=0))[0]
    pool, held_out = task.contexts("train"), task.contexts("test")
    assert len(held_out[0].target) == 2, "one token and the end of the reply"
    assert held_out[0].target[-1] == model.end_of_reply
    prefix = shared_prefix(pool + held_out)
    assert "user" in model.tokenizer.decode(prefix), "the slot lies inside the user's turn, before the text"
    objective = objective_for(Engine(model, prefix))
    before, _ = score_null(objective, held_out)
    intervention = make("soft_prompt", 1, Priors(model))
    row = Row("word", intervention, solver_for(None, None), 0, 8)

    def loss(step, latents):
        return objective.bits(minibatch(pool, row, step), edit([intervention], latents)).mean()[None]

    state = train([row], loss, 100, begin([row], [None], model.device))
    mean = state.parameters[0]["mean"]
    after, margins = score_latents(objective, held_out, intervention, mean.expand(12, *intervention.shape))
    assert float(after.mean()) <= 0.15 * float(before.mean())
    assert float(hits(margins).float().mean()) >= 0.9
    # greedy decoding writes exactly what the margins say
    written = edit([intervention], [mean.expand(12, *intervention.shape)])
    replies = Engine(model, prefix).generate(held_out, written, 4)
    assert [reply == c.target for reply, c in zip(replies, held_out)] == hits(margins).tolist()


def test_weights_were_not_changed_and_take_no_gradient(model):
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in model.network.parameters())
    assert model.num_parameters == 134_515_008
