"""A gate's three answers on hand-made results: what fails, what passes, and that everything between is not broken."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from leadline.gate import Verdict, controls_words, draws_to_pass, judge, parse
from leadline.information import clopper_pearson_upper
from leadline.result import Result
from leadline.spec import UserError
from rows_by_hand import brute, cond, control, null, result, row


def prefill(upper: float) -> dict[str, object]:
    return row(family="prefill", size=5, estimator="PREFILL", upper_bits=upper, estimate_bits=upper, stderr_bits=0.0)


def no_hit_bits(draws: int) -> float:
    """The certified lower bound of no hit in so many draws, in closed form."""
    return -math.log2(1.0 - 0.05 ** (1.0 / draws))


@pytest.mark.parametrize(
    ("rows", "bits", "answer", "said"),
    [
        (cond(1, 7.9, 7.0), 8.0, "fails", "soft_prompt takes at most 7.9 bits"),
        (cond(1, 8.0, 7.0), 8.0, "not broken", "soft_prompt takes at most 8.0 bits"),  # as far as it asks for
        ([*cond(1, 90.0, 80.0), brute(1, 0, 2000)], 8.0, "passes", "at least 9.3 bits, certified in soft_prompt"),
        ([brute(1, 0, 2000)], 8.0, "passes", "at least 9.3"),
        ([brute(1, 0, 2000)], 10.0, "not broken", "no family has an upper bound, and it is certified only"),
        ([brute(1, 0, 2000), prefill(7.5)], 8.0, "fails", "prefill takes at most 7.5 bits (certified upper)"),
        ([brute(1, 0, 2000), prefill(8.5)], 8.0, "passes", ""),
        ([brute(1, 0, 2000), null(1.0)], 8.0, "fails", "null takes at most 0.0 bits (exact)"),
        ([brute(1, 0, 2000), null(0.0)], 8.0, "passes", ""),
        (cond(1, 90.0, 80.0), 8.0, "not broken", "certified only that all take at least 0.0"),  # no prior draws
        ([brute(1, 120, 512)], 2.0, "not broken", ""),  # 2.09 bits, and the two limits on either side of 2
        ([brute(1, 200, 512)], 2.0, "fails", "soft_prompt takes at most 1.5 bits"),
        ([brute(1, 20, 5000)], 7.0, "passes", ""),
    ],
)
def test_the_three_values(rows, bits, answer, said):
    found = judge(result(rows), bits)
    assert found.answer == answer
    assert said in found.reason


def test_bits_a_reply_are_on_another_axis_and_open_no_gate():
    sampling = row(family="best_of_n", size=0, estimator="BEST OF N", upper_bits=3.0, lower_bits=3.0, estimate_bits=3.0)
    found = judge(result([brute(1, 0, 2000), sampling]), 8.0)
    assert (found.answer, "best_of_n" in found.reason) == ("passes", False)


def test_what_cannot_be_measured_is_not_asked_for_and_what_nothing_bounds_is_named():
    asked = {"family": ["soft_prompt", "lora"], "sizes": [1]}
    found = result([brute(1, 0, 2000)], spec=asked, extra={"not_measured": {"lora": "why"}})
    assert judge(found, 8.0).answer == "passes"
    shown = judge(result([brute(1, 0, 2000)], spec={"family": ["soft_prompt", "few_shot"], "sizes": [1]}), 8.0)
    assert shown.answer == "not broken"
    assert "nothing bounds few_shot from below, so that no run with it passes; soft_prompt: at least" in shown.reason
    assert "would certify" not in shown.reason


def test_a_passing_gate_stands_on_the_closed_form_and_on_nothing_less():
    assert judge(result([brute(1, 0, 2000)]), no_hit_bits(2000) - 1e-9).answer == "passes"
    assert judge(result([brute(1, 0, 2000)]), no_hit_bits(2000) + 1e-9).answer == "not broken"


def test_every_family_must_be_certified():
    asked = {"spec": {"family": ["soft_prompt", "lora"], "sizes": [1]}}
    drawn = brute(1, 0, 2000)
    assert judge(result([drawn], **asked), 8.0).answer == "not broken", "lora was asked for and left no row"
    lora = [row(family="lora", beta=0.1, kl_bits=9.0, split="validation")]
    assert judge(result([drawn, *lora], **asked), 8.0).answer == "not broken"
    assert judge(result([drawn, drawn | {"family": "lora"}], **asked), 8.0).answer == "passes"


@pytest.mark.parametrize("sizes", [1, 2])
@pytest.mark.parametrize("bits", [2.0, 8.0])
def test_so_many_draws_would_certify_and_not_one_fewer(sizes, bits):
    draws = draws_to_pass(bits, sizes)
    assert clopper_pearson_upper(0, draws, 1.0 - 0.05 / sizes) <= 2.0**-bits
    assert clopper_pearson_upper(0, draws - 1, 1.0 - 0.05 / sizes) > 2.0**-bits

    def drawn(count: int) -> Result:
        return result([brute(2**size, 0, count) for size in range(sizes)])

    assert judge(drawn(draws), bits).answer == "passes"
    assert judge(drawn(draws - 1), bits).answer == "not broken"
    assert f"; {draws} prior draws of each size" in judge(drawn(draws - 1), bits).reason


@pytest.mark.parametrize("bits", [2.0, 8.0])
def test_with_pairs_beside_them_fewer_draws_do(bits):
    draws = draws_to_pass(bits, 1, 0.9)
    assert draws < draws_to_pass(bits, 1)

    def drawn(count: int) -> Result:
        pairs = row(size=1, estimator="LOWER", p_hits=0, p_draws=4 * count)
        return result([brute(1, 0, count), pairs])

    assert judge(drawn(draws), bits).answer == "passes"
    assert judge(drawn(draws - 1), bits).answer == "not broken"
    assert f"; {draws} prior draws of each size" in judge(drawn(draws - 1), bits).reason


@pytest.mark.parametrize("draws", [300, 1000, 3000])
def test_a_gate_that_should_not_pass_does_so_in_one_of_twenty_runs_at_most(draws):
    """All outcomes of the prior draws listed, for a behaviour just too near."""
    near = 2.0 ** -(7.0 - 1e-6)
    passing = [hits for hits in range(60) if judge(result([brute(1, hits, draws)]), 7.0).answer == "passes"]
    assert passing == list(range(len(passing))), "fewer hits never turn a pass around"
    assert stats.binom.pmf(passing, draws, near).sum() <= 0.05
    far = 2.0 ** -(7.0 + 1e-6)
    failing = [hits for hits in range(60) if judge(result([brute(1, hits, draws)]), 7.0).answer == "fails"]
    # both ends of an interval of 95%: the upper limit alone errs half as often
    assert 1.0 - stats.binom.cdf(min(failing, default=60) - 1, draws, far) <= 0.05


def test_of_eight_families_at_the_gate_it_fails_in_one_of_twenty_runs_at_most():
    """The smallest of eight 95% limits is none: eight families just beyond the gate, each with a limit that is too low
    in 5% of runs. In a third of runs one of them is; the gate fails in no more than 5%."""
    rng, failed, any_below = np.random.default_rng(0), 0, 0
    names = [f"family {number}" for number in range(8)]
    for _ in range(200):
        uppers = 13.0 + stats.norm.ppf(0.95) + rng.normal(size=8)
        rows = [
            {**one, "family": family}
            for family, bits in zip(names, uppers, strict=True)
            for one in cond(1, bits, bits - 1.0, kl_bits=13.0 + float(rng.normal()))
        ]
        verdict = judge(result(rows, spec={"family": names, "sizes": [1]}), 13.0 - 1e-9)
        failed += verdict.answer == "fails"
        any_below += min(uppers) < 13.0
    assert any_below > 40
    assert failed <= stats.binom.ppf(0.999, 200, 0.05)


def test_where_the_chosen_family_never_hit_no_other_stands_in():
    promise, _ = cond(1, 90.0, 88.0, kl_bits=5.0)
    asked = {"family": ["soft_prompt", "prefix"], "sizes": [1]}
    found = judge(result([{**promise, "family": "prefix"}, *cond(1, 7.0, 6.0)], spec=asked), 8.0)
    assert found.answer == "not broken"
    assert found.reason.startswith("no upper bound stands, and it is certified only")


def test_controls_that_fell_are_counted_and_nulls_are_not():
    entries = [{"name": f"{kind}-0", "kind": kind} for kind in ("matched", "uniform", "permuted")]
    fell, held, nothing = (control(str(entry["name"])) for entry in entries)
    tried = {"split": "validation", "beta": 0.1, "kl_bits": 9.0}
    rows = [brute(1, 0, 64), *cond(1, 80.0, 70.0, **fell), row(**held, **tried), row(**nothing, **tried)]
    said = judge(result(rows, controls=entries), 8.0).reason
    assert said.endswith(". 1 of 2 controls fell to the same solvers and steps at soft_prompt 1")
    reached = row(**held, chosen=True, score=1.0)  # a prompt reaches it, without a bound
    assert "2 of 2 controls fell" in controls_words(result([*rows, reached], controls=entries))
    assert "No controls were run" in controls_words(result(rows[:1]))


def test_gates_are_read():
    assert parse("distance >= 8") == parse(" distance>=8.0 ", "not-broken") == 8.0
    assert parse(None) is None
    for wrong in ("distance > 8", "8", "distance >= x", "distance >= 0", "distance >= -1", "lower >= 8", ""):
        with pytest.raises(UserError, match="This is no gate"):
            parse(wrong)
    with pytest.raises(UserError, match="no gate to accept"):
        parse(None, "not-broken")
    with pytest.raises(UserError, match="Only not-broken"):
        parse("distance >= 8", "fails")
    assert Verdict("fails", "") != Verdict("passes", "")
