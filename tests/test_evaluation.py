"""Scoring with and without dropping draws agree about S; the level function is exact; a lost draw stays a miss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leadline.engine import Context, Engine
from leadline.evaluation import first_item_hits, in_s, score_draws, score_latents
from leadline.interventions import make
from leadline.objective import Objective
from leadline.priors import Priors, normal
from leadline.scoring import hits, level, needed
from models import random_model


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=50), st.sampled_from([0.5, 0.75, 0.9, 1.0]))
def test_the_level_is_positive_exactly_where_the_score_reaches_the_threshold(values, threshold):
    margins = torch.tensor(values, dtype=torch.float64)
    reached = int(hits(margins).sum()) / len(values) >= threshold - 1e-12
    assert bool(level(margins, threshold) > 0) == reached


def test_thirty_six_of_forty_is_ninety_percent():
    assert [needed(0.9, n) for n in (8, 10, 40, 41)] == [8, 9, 36, 37]


def test_nan_margins_are_misses():
    margins = torch.tensor([1.0, float("nan"), 1.0])
    assert hits(margins).tolist() == [True, False, True]
    assert level(margins, 1.0) == float("-inf")


@pytest.fixture(scope="module")
def scene():
    """Greedy replies of a random model as targets: some draws keep some of them."""
    model = random_model("llama")
    intervention = make("soft_prompt", 1, Priors(model))
    engine = Engine(model)
    contexts = [Context((5, i), (i + 1, 9), ()) for i in range(10, 22)]
    base = normal((1, *intervention.shape), "base")
    from leadline.interventions.base import edit

    replies = engine.generate(contexts, edit([intervention], [base.expand(12, *intervention.shape)]), 1)
    contexts = [Context(c.before, c.after, reply) for c, reply in zip(contexts, replies)]
    latents = base + 0.2 * normal((40, *intervention.shape), "draws")
    return Objective(engine), contexts, intervention, latents


@pytest.mark.parametrize("threshold", [0.5, 0.75, 0.9])
def test_dropping_hopeless_draws_changes_no_membership(scene, threshold):
    objective, contexts, intervention, latents = scene
    found = score_draws(objective, contexts, intervention, latents, threshold)
    whole = torch.stack([
        score_latents(objective, contexts, intervention, z.expand(12, *z.shape))[1] for z in latents
    ])  # fmt: skip
    wanted = hits(whole).sum(1) >= needed(threshold, 12)
    assert 0 < int(wanted.sum()) < 40, "the scene must hold both kinds of draw"
    assert torch.equal(in_s(found, threshold), wanted)
    scored = ~found.isnan()
    assert torch.equal(hits(found)[scored], hits(whole)[scored])
    if threshold > 0.5:
        assert not bool(scored.all()), "some draws must have been dropped"
    hit, trials = first_item_hits(found, threshold)
    first = hits(whole)[:, : 12 - needed(threshold, 12) + 1]
    assert (hit, trials) == (int(first.sum()), first.numel())


def test_scoring_that_was_interrupted_goes_on_to_the_same_margins(scene):
    objective, contexts, intervention, latents = scene
    seen = []

    def stop(margins):
        seen.append(margins.clone())
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_draws(objective, contexts, intervention, latents, 0.75, None, stop)
    again = score_draws(objective, contexts, intervention, latents, 0.75, seen[-1])
    whole = score_draws(objective, contexts, intervention, latents, 0.75)
    assert torch.equal(again.isnan(), whole.isnan())
    assert torch.allclose(again.nan_to_num(0), whole.nan_to_num(0), atol=1e-5)
