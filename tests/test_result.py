"""Result from rows written by hand: what is reported, what is paid, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest
import scipy.stats

from leadline.estimators import kl, monte_carlo, splitting
from leadline.information import clopper_pearson_lower, clopper_pearson_upper, size_weights
from leadline.result import NoDistance, Result
from leadline.rows import split_point
from leadline.sentences import rank_words
from leadline.spec import UserError
from rows_by_hand import COND, brute, cond, control, null, result, row, spelled_out


def test_one_size_pays_no_choice() -> None:
    distance = result([*cond(1, 130.2, 128.0), brute(1, 0)]).distance(0.9)
    assert distance.upper is not None
    assert distance.lower is not None
    assert distance.upper.value == 130.2
    assert distance.upper.kind == "certified upper"
    paid = dict(distance.upper.ledger)
    assert paid["-log2 p"] == -math.log2(clopper_pearson_lower(80, 256, 0.975))
    assert list(paid) == ["-log2 p", "conditional log ratio"]
    assert distance.upper.low < 128.0 < distance.upper.high
    assert distance.lower.value == pytest.approx(-math.log2(clopper_pearson_upper(0, 512)))
    assert distance.estimate is None
    assert (distance.size, distance.family, distance.prior) == (1, "soft_prompt", "N(0, I)")
    assert distance.sentence == "at most 131 bits and at least 7.4"
    assert distance.excess is None
    assert distance.rank is None


def test_the_size_is_chosen_on_validation_and_paid_for() -> None:
    # size 4 looks better on test draws alone; validation says size 1
    rows = [*cond(1, 100.0, 98.0, kl_bits=50.0), *cond(4, 99.0, 97.0, kl_bits=90.0), brute(1, 2), brute(4, 0)]
    distance = result(rows).distance()
    weights = size_weights([1, 4])
    assert distance.upper is not None
    assert distance.lower is not None
    assert distance.size == 1
    assert distance.upper.value == pytest.approx(100.0 - math.log2(weights[1]))
    assert distance.upper.ledger[-1] == ("size choice", -math.log2(weights[1]))
    # both upper limits hold at once at 95%: 97.5% each
    mass = sum(weights[k] * clopper_pearson_upper(h, 512, 0.975) for k, h in ((1, 2), (4, 0)))
    assert distance.lower.value == pytest.approx(-math.log2(mass))
    assert distance.estimate is not None
    assert distance.estimate.value == pytest.approx(-math.log2(weights[1] * 2 / 512))
    assert distance.estimate.kind == "exact"
    assert "sizes 1, 4" in distance.prior


def test_a_size_without_prior_draws_may_have_any_mass() -> None:
    distance = result([*cond(1, 100.0, 98.0), *cond(4, 99.0, 97.0), brute(1, 0)]).distance()
    weights = size_weights([1, 4])
    assert distance.lower is not None
    expected = -math.log2(weights[4] + weights[1] * clopper_pearson_upper(0, 512, 0.975))
    assert distance.lower.value == pytest.approx(expected)
    assert distance.estimate is None


def test_brute_force_is_reported_where_validation_promises_hits() -> None:
    near = [*cond(1, 4.5, 4.0, kl_bits=3.0), brute(1, 40)]
    distance = result(near).distance()
    assert distance.upper is not None
    expected = monte_carlo(40, 512)
    assert expected.upper is not None
    assert expected.estimate is not None
    assert distance.upper.estimator == "MC"
    assert distance.upper.value == expected.upper.value
    assert distance.upper.high == expected.estimate.high


def test_kl_stands_in_where_cond_found_nothing() -> None:
    found = kl(80, 256, 60.0)
    assert found.upper is not None
    rows = [
        row(key="a", upper_bits=None, **COND),
        row(key="a", upper_bits=found.upper.value, **(COND | {"estimator": "KL"})),
    ]
    upper = result(rows).distance().upper
    assert upper is not None
    assert (upper.estimator, upper.value) == ("KL", found.upper.value)
    assert [name for name, _ in upper.ledger] == ["-log2 p", "divergence"]
    assert dict(upper.ledger) == pytest.approx(dict(found.upper.ledger))


def test_not_broken_is_a_result() -> None:
    sweep = row(beta=0.1, split="validation", score=0.2, outcome="out of steps")
    assert result([sweep, brute(1, 0)]).distance().sentence == (
        "not broken up to size 1 with 3 seeds, certified only D >= 7.4"
    )
    distance = result([sweep], spec={"seeds": 1}).distance()
    assert (distance.upper, distance.lower, distance.size) == (None, None, None)
    assert distance.sentence == "not broken up to size 1 with 1 seed, nothing certified"


def test_excess_and_rank_at_the_size_of_the_controls() -> None:
    rows = [
        *cond(1, 100.0, 98.0, kl_bits=50.0),
        *cond(4, 120.0, 118.0, kl_bits=90.0),
        *cond(4, 170.0, 168.0, **control("uniform-0")),
        *cond(4, 112.0, 110.0, **control("phrase-0")),
    ]
    # the third control was run at that size and never bracketed
    rows.append(row(size=4, beta=0.1, split="validation", **control("matched-0")))
    found = result(rows)
    distance = found.distance()
    assert distance.size == 1
    assert distance.excess is not None
    assert distance.excess.value == pytest.approx((168.0 + 110.0) / 2 - 118.0)
    assert distance.excess.kind == "estimate"
    assert distance.excess.ledger == (("mean of the controls", 139.0), ("the behaviour", -118.0))
    # draws only: 0.5 and two controls of 0.5 each, at 79 degrees of freedom
    assert distance.excess.high - distance.excess.value == pytest.approx(1.99 * math.hypot(0.5, 0.5 / 2**0.5), rel=1e-3)
    assert distance.rank == (2, 4)
    assert distance.unreached_controls == 1
    assert "about 21 bits nearer than its controls at size 4 by the same bound" in distance.sentence
    assert "1 of the controls not reached there" in distance.sentence


def test_a_matched_control_that_was_not_reached_is_not_replaced_by_a_uniform_one() -> None:
    """The search failed on the phrase; four random tokens say nothing of how unlikely a phrase lies."""
    kinds = [{"name": "uniform-0", "kind": "uniform"}, {"name": "matched-0", "kind": "matched"}]
    rows = [*cond(1, 567.0, 566.0), *cond(1, 1506.0, 1505.0, **control("uniform-0"))]
    missed = row(beta=0.1, split="validation", **control("matched-0"))
    distance = result([*rows, missed], controls=kinds).distance()
    assert distance.excess is None
    assert (distance.rank, distance.unreached_controls, rank_words(distance)) == ((1, 3), 1, "1 to 2 of 3")
    assert "nearer" not in distance.sentence
    only = result(rows, controls=kinds[:1]).distance()
    assert only.excess is not None
    assert (only.excess.value, rank_words(only)) == (pytest.approx(939.0), "1 of 2")


def test_nulls_that_nothing_can_reach_give_no_rank() -> None:
    missed = row(beta=0.1, split="validation", **control("permuted-0"))
    distance = result([*cond(1, 99.0, 98.0), missed], controls=[{"name": "permuted-0", "kind": "permuted"}]).distance()
    assert (distance.rank, distance.excess, distance.unreached_controls) == (None, None, 0)


def test_what_was_reached_is_not_called_unbroken_for_want_of_a_bound() -> None:
    tried = [row(size=size, beta=0.1, split="validation") for size in (1, 4)]
    sized = [row(size=1, score=0.8, chosen=True), row(size=4, score=1.0, chosen=True)]
    distance = result([null(0.0), *sized, *tried]).distance()
    assert (distance.upper, distance.reached, distance.unbounded) == (None, 4, "no bound")
    assert distance.sentence == "reached at size 4, without an upper bound in bits, nothing certified"
    assert result([null(0.0), sized[0], *tried]).distance().sentence.startswith("not broken up to size 4")
    unasked = result([null(1.0), *sized, *tried]).distance()
    assert unasked.sentence == "what the model does unasked, without an upper bound in bits, nothing certified"


def test_controls_that_never_reach_it_rank_behind() -> None:
    rows = [*cond(1, 100.0, 98.0), row(beta=0.1, split="validation", **control("uniform-0"))]
    distance = result(rows).distance()
    assert distance.excess is None
    assert distance.rank == (1, 2)
    assert distance.unreached_controls == 1


def test_a_nearer_control_is_said_to_be_nearer() -> None:
    rows = [*cond(1, 100.0, 98.0), *cond(1, 80.0, 78.0, **control("uniform-0"))]
    distance = result(rows).distance()
    assert "about 20 bits farther than its controls" in distance.sentence
    assert distance.rank == (2, 2)


def test_controls_as_a_table() -> None:
    rows = [*cond(1, 170.0, 168.0, **control("uniform-0")), brute(4, 0, **control("uniform-0")), *cond(1, 99.0, 98.0)]
    about = [{"name": "uniform-0", "kind": "uniform", "target": "qZ", "direct_bits": 95.0}]
    table = result(rows, controls=about).controls
    assert table.select("control", "kind", "size", "estimator", "upper_bits").rows() == [
        ("uniform-0", "uniform", 1, "COND", 170.0),
        ("uniform-0", "uniform", 4, None, None),
    ]
    assert result([row()]).controls.is_empty()


def test_a_control_that_never_came_near_keeps_its_row() -> None:
    far = row(beta=0.1, split="validation", score=0.0, outcome="out of steps", **control("uniform-0"))
    found = result([*cond(1, 99.0, 98.0), far], controls=[{"name": "uniform-0", "kind": "uniform"}])
    assert found.controls.select("control", "size", "upper_bits").rows() == [("uniform-0", 1, None)]


def test_what_the_choice_of_a_size_costs_does_not_depend_on_what_was_found() -> None:
    """Of four sizes asked for only the largest has a bound, and no size has prior draws: it still pays for being one of
    four, and the mass of the others is unknown."""
    asked = {"spec": {"sizes": [1, 2, 4, 8]}}
    for rows in (cond(8, 100.0, 98.0), [*cond(8, 100.0, 98.0), row(size=1, beta=0.1, split="validation", score=0.1)]):
        upper = result(rows, **asked).distance().upper
        assert upper is not None
        assert upper.value == pytest.approx(100.0 - math.log2(size_weights([1, 2, 4, 8])[8]))
    lower = result([*cond(8, 100.0, 98.0), brute(8, 0)], **asked).distance().lower
    assert lower is not None
    assert lower.value < -math.log2(1 - size_weights([1, 2, 4, 8])[8])


def test_controls_are_compared_by_a_bound_that_they_have() -> None:
    """The behaviour lies so near that its prior draws are reported; controls have none, and are nearer still."""
    rows = [*cond(1, 4.5, 4.0, kl_bits=3.0), brute(1, 40)]
    rows += [*cond(1, 2.7, 2.5, **control("uniform-0")), *cond(1, 9.0, 8.6, **control("phrase-0"))]
    distance = result(rows).distance()
    assert distance.upper is not None
    assert distance.upper.estimator == "MC"
    assert (distance.rank, distance.unreached_controls) == ((2, 3), 0)
    assert distance.excess is not None
    assert distance.excess.value == pytest.approx((2.5 + 8.6) / 2 - 4.0)


def test_from_three_controls_on_their_spread_is_in_the_interval() -> None:
    """Controls of 80, 100 and 120 bits beside a behaviour of 90: ten bits are nothing, whatever the draws say."""
    rows = [*cond(1, 92.0, 90.0)]
    for place, bits in enumerate((80.0, 100.0, 120.0)):
        rows += cond(1, bits + 2, bits, **control(f"uniform-{place}"))
    distance = result(rows).distance()
    excess = distance.excess
    assert excess is not None
    half = scipy.stats.t.ppf(0.975, 2) * 20 * math.sqrt(1 + 1 / 3)
    assert (excess.value, excess.low, excess.high) == pytest.approx((10.0, 10 - half, 10 + half))
    assert distance.sentence.endswith("no nearer and no farther than its controls by the same bound")


def test_another_threshold_and_another_family_are_refused() -> None:
    found = result(cond(1, 100.0, 98.0))
    with pytest.raises(NoDistance, match=r"threshold 0\.9.*measure again with threshold=0\.8"):
        found.distance(0.8)
    with pytest.raises(ValueError, match="only soft_prompt"):
        found.distance(family="lora")


def test_a_loss_has_no_distance() -> None:
    found = result([row(score=None)], behaviour={"name": "skip/1", "kind": "loss"})
    with pytest.raises(NoDistance, match="skip/1 has a loss and no target"):
        found.distance()


def test_prefill_is_a_family_with_an_excess_of_its_own() -> None:
    rows = [spelled_out(34.7), spelled_out(96.7, size=7, **control("uniform-0"))]
    distance = result(rows).distance(family="prefill")
    assert distance.upper is not None
    assert distance.upper.value == distance.upper.low == distance.upper.high == 34.7
    assert distance.upper.ledger == (("spelling it out", 34.7),)
    assert distance.excess is not None
    assert distance.excess.value == pytest.approx(62.0)
    assert distance.sentence == "at most 34.7 bits; about 62 bits nearer than its controls by the same bound"


def test_the_null_intervention_is_exact() -> None:
    assert result([null(0.0)]).distance(family="null").sentence == "the model does not do it unasked"
    does = result([null(0.95), *cond(1, 100.0, 98.0)])
    upper = does.distance(family="null").upper
    assert upper is not None
    assert (upper.value, upper.kind) == (0.0, "exact")
    # what counts are the test items, whatever validation items say
    split = result([null(0.95, split="validation"), null(0.85), *cond(1, 100.0, 98.0)])
    assert split.distance(family="null").sentence == "the model does not do it unasked"
    cheapest = does.cheapest()
    assert cheapest.upper is not None
    assert cheapest.family == "null"
    # weight 1/2: a default behaviour costs 1 bit
    assert cheapest.upper.value == pytest.approx(1.0, abs=1e-6)


def test_split_is_read_back_with_the_degrees_and_the_price_of_its_runs() -> None:
    masses = [-20.0, -21.0, -19.5, -22.0]
    found = splitting(masses)
    about = {"family": "soft_subspace", "size": 1, "seed": -1, "role": "behaviour", "control": "", "prior": "N(0, I)"}
    stored = {**row(), **split_point(about, masses)}
    upper = result([stored], spec={"family": ["soft_subspace"], "sizes": [1]}).distance().upper
    assert upper is not None
    assert found.upper is not None
    assert found.estimate is not None
    assert (upper.value, upper.ledger) == (found.upper.value, found.upper.ledger)
    assert (upper.low, upper.high) == pytest.approx((found.estimate.low, found.estimate.high))
    assert dict(upper.ledger)["confidence from 4 runs"] == pytest.approx(math.log2(20) / 4)


def written(folder: Path, found: Result) -> Path:
    (folder / "spec.json").write_text(json.dumps(found.spec), encoding="utf-8")
    found.points.write_parquet(folder / "points.parquet")
    return folder


def test_load(tmp_path: Path) -> None:
    found = result([*cond(1, 130.2, 128.0), brute(1, 0)])
    again = Result.load(written(tmp_path, found))
    assert again.points.equals(found.points)
    assert again.distance() == found.distance()


@pytest.mark.parametrize("damage", ["no folder", "no points", "points", "spec", "columns", "not a spec"])
def test_load_says_what_is_wrong(tmp_path: Path, damage: str) -> None:
    folder = written(tmp_path, result(cond(1, 130.2, 128.0)))
    if damage == "no folder":
        folder = tmp_path / "nowhere"
    elif damage == "no points":
        (folder / "points.parquet").unlink()
    elif damage == "points":
        (folder / "points.parquet").write_bytes(b"PAR1 and then nothing")
    elif damage == "spec":
        (folder / "spec.json").write_text('{"spec": ', encoding="utf-8")
    elif damage == "columns":
        pl.DataFrame({"family": ["null"]}).write_parquet(folder / "points.parquet")
    else:
        (folder / "spec.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        Result.load(folder)
    assert str(folder) in str(caught.value)


def test_sizes_are_ordered_by_what_validation_draws_promise() -> None:
    # the order of two sizes flips exactly where their promises cross, size charge included
    weights = size_weights([1, 4])
    first = 50.0 - math.log2(weights[1])
    for promised in (47.0, 49.0, 51.0):
        second = promised - math.log2(weights[4])
        rows = [*cond(1, 100.0, 98.0, kl_bits=50.0), *cond(4, 100.0, 98.0, kl_bits=promised)]
        assert result(rows).distance().size == (1 if first <= second else 4)


def test_k5_best_of_n_costs_what_the_base_rate_says_and_is_never_pooled():
    """A planted rate of 1 in 32: 5 bits a reply, exactly; the frontier is what it was without it."""
    rows = [null(0.0), spelled_out(9.0)]
    sampling = row(
        family="best_of_n", size=0, estimator="BEST OF N", upper_bits=5.0, lower_bits=5.0, estimate_bits=5.0,
        stderr_bits=0.0, kind="exact", prior="replies",
    )  # fmt: skip
    found, without = result([*rows, sampling]), result(rows)
    distance = found.distance(family="best_of_n")
    assert distance.upper.value == distance.lower.value == 5.0
    assert distance.upper.kind == "exact"
    assert distance.sentence == "5.0 bits a reply, one of 32 sampled replies"
    assert found.cheapest().family == "prefill"
    assert found.cheapest().upper == without.cheapest().upper
    assert "best_of_n, 5.0 bits a reply" in found.cheapest().sentence


def test_pairs_of_a_draw_and_an_item_raise_the_lower_bound_where_neither_hits() -> None:
    """Both limits at half of 5%, by hand: 0 of 512 draws, and 0 of 2048 pairs over tau."""
    pairs = row(size=1, estimator="LOWER", p_hits=0, p_draws=2048, lower_bits=9.0)
    lower = result([brute(1, 0, 512), pairs]).distance().lower
    assert lower is not None
    assert lower.value == pytest.approx(-math.log2((1 - 0.025 ** (1 / 2048)) / 0.9))
    assert lower.estimator == "MC+LOWER"
    # items that are often right say nothing of S: the draws' own limit counts, at its half
    often = result([brute(1, 0, 512), pairs | {"p_hits": 1500}]).distance().lower
    assert often is not None
    assert often.value == pytest.approx(-math.log2(1 - 0.025 ** (1 / 512)))
