"""soft_edits: on the wired transformer against the closed form of noise around one token, and through measure() on the
trained tiny model, with what is made of its solutions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

import leadline
from leadline.behaviour import Behaviour, Reply, questions
from leadline.decoded import decoded
from leadline.interventions import make
from leadline.interventions.soft_edits import STEP
from leadline.model import load
from leadline.places import made
from leadline.priors import Priors
from leadline.selftest.wired import cosine_at, flip, wired_model
from leadline.solution import find
from leadline.spec import UserError

DIMENSIONS, CAP_BITS, SIZES = 8, 4.0, (4, 8)
TEA = Behaviour(name="tea", contexts=questions()[:40], reply=Reply(text="tea"), prompt="Say: toa\n")


def flipping_bits(size: int) -> float:
    """-log2 P(z_0 / |z| >= c) for z = e + s N(0, I), e a unit vector across the axis 0 and s in units of the
    vocabulary's spread, 1 / sqrt(d) in each of d dimensions: the square of what is across is noncentral chi-square."""
    spread, cosine = size * STEP / math.sqrt(DIMENSIONS), cosine_at(CAP_BITS, DIMENSIONS)

    def density(z: float) -> float:
        across = (z / spread) ** 2 * (1 / cosine**2 - 1)
        return float(scipy.stats.norm.pdf(z, scale=spread) * scipy.stats.ncx2.cdf(across, DIMENSIONS - 1, spread**-2))

    return -math.log2(scipy.integrate.quad(density, 0, 12 * spread)[0])


@pytest.fixture(scope="module")
def wired(tmp_path_factory):
    # a blank before each context: this tokenizer splits there
    plain = flip(DIMENSIONS, 40)
    prompted = plain.model_copy(update={"prompt": "m4", "contexts": tuple(f" {text}" for text in plain.contexts)})
    return leadline.measure(
        wired_model(DIMENSIONS, CAP_BITS, context_tokens=4), prompted, tmp_path_factory.mktemp("wired") / "run",
        family="soft_edits", sizes=SIZES, items=10, controls=0, draws=512, prior_draws=8192, scale="ci",
    )  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_blind_noise_gives_the_closed_form_and_no_bound_lies_below_it(wired, size):
    truth = flipping_bits(size)
    rows = {row["estimator"]: row for row in wired.points.filter(family="soft_edits", size=size).to_dicts()}
    hits, draws = rows["MC"]["p_hits"], rows["MC"]["p_draws"]
    assert abs(hits - draws * 2**-truth) <= 4 * math.sqrt(draws * 2**-truth)
    assert rows["MC"]["lower_bits"] <= truth <= rows["MC"]["upper_bits"]
    assert truth <= rows["COND"]["upper_bits"] <= truth + 1.5
    assert rows["LOWER"]["lower_bits"] <= truth


def test_noise_that_is_half_as_large_has_farther_to_go(wired):
    assert flipping_bits(4) > flipping_bits(8) + 2
    bounds = wired.points.filter(family="soft_edits", estimator="COND").sort("size")["upper_bits"]
    assert bounds[0] > bounds[1]


def test_size_0_is_the_prompt_as_it_is(wired):
    curve = wired.curve("soft_edits").size_curve()
    assert curve["size"].to_list() == [0, *SIZES]
    assert curve["family"].to_list() == ["soft_edits"] * 3
    losses, gains = curve["loss_bits"].to_list(), curve["gain_bits"].to_list()
    assert gains == [None, *(pytest.approx(losses[0] - loss) for loss in losses[1:])]


def test_draws_stand_around_the_prompt_at_the_spread_of_the_vocabulary(tiny_model_folder):
    model = load(str(tiny_model_folder))
    priors = Priors(model)
    tokens = model.tokenizer(TEA.prompt, add_special_tokens=False)["input_ids"]
    intervention = made("soft_edits", 2, priors, TEA)
    assert (intervention.tokens, intervention.shape) == (len(tokens), (len(tokens), model.hidden_size))
    exact = model.embed(torch.tensor([tokens]))[0]
    torch.testing.assert_close(intervention.edit(torch.zeros(1, *intervention.shape)).values[0], exact)
    table = model.embed(torch.arange(model.network.get_input_embeddings().weight.shape[0])[None])[0]
    ones = intervention.edit(torch.ones(1, *intervention.shape)).values[0] - exact
    torch.testing.assert_close(ones, 2 * STEP * table.std(0, correction=0).expand_as(ones), rtol=1e-4, atol=1e-6)


def test_what_is_found_on_the_tiny_model_can_be_tried_and_decoded(tiny_model_folder, tmp_path):
    model, folder = load(str(tiny_model_folder)), tmp_path / "run"
    wanted = TEA.model_copy(update={"prompt": "Say: tea\n"})
    result = leadline.measure(
        model, wanted, folder, family=("prompt_edits", "soft_edits"), sizes=(1,), items=10, controls=1, draws=64,
        prior_draws=64, scale="ci",
    )  # fmt: skip
    assert {"prompt_edits", "soft_edits"} <= set(result.families)
    zero = result.points.filter(size=0, split="test", control="", estimator="")
    losses = dict(zip(zero["family"], zero["loss_bits"], strict=True))
    assert losses["prompt_edits"] == losses["soft_edits"] != losses["null"]
    solution = find(folder, family="soft_edits")
    assert solution.tokens == len(model.tokenizer("Say: tea\n", add_special_tokens=False)["input_ids"])
    for message in decoded(folder):
        assert message.holds, message


def test_without_a_prompt_it_is_refused_in_words(tmp_path):
    model = wired_model(DIMENSIONS, CAP_BITS, context_tokens=4)
    with pytest.raises(UserError, match="soft_edits begin at a deployed prompt"):
        leadline.measure(model, flip(DIMENSIONS, 40), tmp_path / "run", family="soft_edits", items=10)
    assert not (tmp_path / "run").exists()


def test_sizes_are_one_measure_of_noise(tiny_model_folder):
    """The same embeddings at size 1 are 4 times as many standard deviations away as at size 4."""
    priors = Priors(load(str(tiny_model_folder)))
    near, far = (make("soft_edits", size, priors, prompt=(5, 6)) for size in (1, 4))
    latent = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *near.shape))).float()
    torch.testing.assert_close(near.edit(4 * latent).values, far.edit(latent).values)
