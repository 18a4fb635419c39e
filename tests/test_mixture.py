"""The vocabulary mixture: its density by enumeration, a planted distance through measure(), and a solution of it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import leadline
from leadline import rows
from leadline.behaviour import Behaviour, Reply
from leadline.estimators.combine import COMPONENT
from leadline.interventions.vocab_mixture import SPREAD, around
from leadline.priors import Priors, normal
from leadline.selftest.wired import cosine_at, wired_model
from leadline.solution import find
from leadline.spec import UserError
from leadline.texts import TextPrior

DIMENSIONS, AXIS, DISTANCE = 16, 4, 6.0
FILLERS = [f"{sign}{i}" for sign in "pm" for i in range(5, DIMENSIONS)]
FLIP = Behaviour(
    name="flip", format="raw", slot="start", reply=Reply(text="p1"), ends=False,
    contexts=tuple(f"{a} {b} p3 m1" for a in FILLERS for b in FILLERS)[:150],
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    """The word p4 at the start flips the reply, and so does whatever lies in a cone around its embedding."""
    return wired_model(DIMENSIONS, DISTANCE, context_tokens=4, axis=AXIS)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """No word of this model's can be typed, for want of a space; so the search's text is given, the one that works."""
    folder = tmp_path_factory.mktemp("mixture") / "run"
    found = {"best": [model.tokenizer.convert_tokens_to_ids("p4")], "flops": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leadline.mixture_stage.climbed", lambda *_: found)
        leadline.measure(
            model, FLIP, folder, family="vocab_mixture", sizes=(1,), controls=0, prior_draws=2048, scale="ci"
        )
    return folder


def true_mass(model) -> float:
    """Mass of the cone under the mixture, word by word, by 100,000 draws around each: the axis' own word hits nearly
    always and each other word seldom, so that the error of the sum is far below a hundredth of it."""
    words = torch.arange(2 * DIMENSIONS)
    shares = torch.exp2(-TextPrior(model, ()).surprisal_bits(words[:, None]))
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-6)
    embeddings, scale = model.embed(words), Priors(model).embedding.scale
    hits = [
        (near[:, AXIS] / near.norm(dim=1) >= cosine_at(DISTANCE, DIMENSIONS)).double().mean()
        for word in words.tolist()
        for near in [embeddings[word] + SPREAD * scale * normal((100_000, DIMENSIONS), "mass", word)]
    ]
    return float((shares * torch.stack(hits)).sum())


def test_bounds_around_a_word_hold_and_cost_little_more_than_the_word(model, run):
    truth = -math.log2(true_mass(model))
    points = leadline.Result.load(run).points
    exact = points.filter(estimator="MC").row(0, named=True)
    assert abs(exact["estimate_bits"] - truth) < 3 * exact["stderr_bits"]
    assert exact["lower_bits"] <= truth <= exact["upper_bits"]
    word = model.tokenizer.convert_tokens_to_ids("p4")
    price = float(TextPrior(model, ()).surprisal_bits(torch.tensor([[word]])))
    for name in ("COND", "KL", "IW"):
        found = points.filter(estimator=name).row(0, named=True)
        assert truth <= found["upper_bits"], name
        assert found["component_bits"] == pytest.approx(price)
    # no worse than the text that it stands around, but for the certainty of the draws
    cond = points.filter(estimator="COND").row(0, named=True)
    assert cond["p_hits"] >= 120
    assert cond["upper_bits"] < price + 0.5


def test_the_text_is_paid_for_and_said(run):
    result = leadline.Result.load(run)
    upper = result.distance(family="vocab_mixture").upper
    if upper.estimator == "COND":
        assert dict(upper.ledger)[COMPONENT] > 4
    anchors = result.spec["extra"]["anchors"]
    assert {name: anchor["string"] for name, anchor in anchors.items()} == {"/vocab_mixture/1/0": "p4"}


def test_a_ratio_to_one_component_is_never_below_the_ratio_to_the_mixture(model):
    """Two tokens: the density of the mixture is summed over all 1,024 texts."""
    priors, words = Priors(model), list(itertools.product(range(2 * DIMENSIONS), repeat=2))
    shares = -TextPrior(model, ()).surprisal_bits(torch.tensor(words))
    middles = model.embed(torch.tensor(words)).double().flatten(1)
    bits = float(TextPrior(model, ()).surprisal_bits(torch.tensor([[4, 9]])))
    component = around(priors, (4, 9), bits)
    shape = component.shape
    parameters = {"mean": 0.7 * normal(shape, "mean"), "log_scale": -0.3 * normal(shape, "width").abs()}
    latents = parameters["mean"] + parameters["log_scale"].exp() * normal((64, *shape), "draws")
    about = {"component_bits": component.component_bits}
    found = torch.from_numpy(rows.log_ratios(about, latents, parameters))
    # both densities over whitened coordinates around the component, in bits, up to the same constant
    own = ((latents - parameters["mean"]) / parameters["log_scale"].exp()).double().flatten(1)
    q = (-own.square() / 2 - parameters["log_scale"].double().flatten()).sum(1) / math.log(2)
    values = component.edit(latents).values.double().flatten(1)
    scale = (SPREAD * priors.embedding.scale).double().repeat(2)
    away = ((values[:, None] - middles) / scale).square().sum(2) / 2
    pi = torch.logsumexp(shares * math.log(2) - away, 1) / math.log(2)
    exact = q - pi
    assert (found >= exact - 1e-4).all()
    # far from every other text the component is nearly all of the mixture, near them it is not
    near = component.edit(torch.zeros(1, *shape)).values
    assert torch.equal(near[0], model.embed(torch.tensor([[4, 9]]))[0].float())
    assert float((found - exact).min()) < 0.2


def test_a_solution_stands_around_its_text(model, run, monkeypatch):
    monkeypatch.setattr("leadline.solution.load", lambda *_: model)
    found = find(run, family="vocab_mixture")
    word = model.embed(torch.tensor([model.tokenizer.convert_tokens_to_ids("p4")]))
    moved = (found.edit.values[0] - word) / (SPREAD * Priors(model).embedding.scale)
    assert found.edit.values.shape == (1, 1, DIMENSIONS)
    assert 0 < float(moved.norm()) < 30
    spec = leadline.Result.load(run).spec
    monkeypatch.setattr("leadline.solution.read_spec", lambda _: {**spec, "extra": {}})
    with pytest.raises(UserError, match="not on record"):
        find(run, family="vocab_mixture")
