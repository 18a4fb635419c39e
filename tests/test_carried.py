"""A family that cannot be measured is left out of "all", with its reason wherever the run is read, and refused where it
was named."""

from __future__ import annotations

import json

import pytest
from transformers import PreTrainedTokenizerFast

import leadline
from commands import FEW, call, small
from leadline import plan
from leadline import spec as specs
from leadline.behaviour import Behaviour, Reply, questions
from leadline.carried import carried
from leadline.costs import plan_lines
from leadline.model import load
from leadline.priors import Priors
from leadline.report.headline import headline
from leadline.spec import COMMON, RunSpec, UserError
from models import frozen

W = Behaviour(name="w", contexts=questions()[:40], reply=Reply(text="W"), ends=False)
SMALL = {"items": 10, "draws": 64, "controls": 0, "scale": "ci"}


@pytest.fixture(scope="module")
def model():
    return load("organism:random")


@pytest.fixture(scope="module")
def trimming(model):
    template = model.tokenizer.chat_template.replace("message['content']", "message['content'] | trim")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model.tokenizer.backend_tokenizer, eos_token="<|end|>", chat_template=template
    )
    return frozen(model.network, tokenizer)


def test_what_cannot_be_carried_is_left_out_of_all_with_its_reason(model, trimming):
    kept, left_out = carried(model, W, RunSpec(family="all", sizes=(1,), **SMALL), Priors(model))
    assert (kept.family, left_out) == (COMMON, {})
    last = W.model_copy(update={"slot": "after_user"})
    kept, left_out = carried(trimming, last, RunSpec(family="all", sizes=(1,), **SMALL), Priors(trimming))
    assert kept.family == tuple(family for family in COMMON if family != "few_shot")
    assert "this slot does not keep" in left_out["few_shot"]
    # three blocks hold two sites, and eight demonstrations do not fit into a window of 256
    kept, left_out = carried(model, W, RunSpec(family="all", sizes=(1, 8), **SMALL), Priors(model))
    assert set(left_out) == {"steering", "few_shot"}
    assert kept.family == tuple(family for family in COMMON if family not in left_out)


def test_a_family_that_was_named_is_not_left_out(model, tmp_path):
    spec = RunSpec(family=("soft_prompt", "few_shot"), sizes=(1, 8), **SMALL)
    with pytest.raises(UserError, match="do not fit into the model's window"):
        carried(model, W, spec, Priors(model))
    fitting = spec.model_copy(update={"sizes": (1,)})
    assert carried(model, W, fitting, Priors(model)) == (fitting, {})
    with pytest.raises(UserError, match="do not fit into the model's window"):
        leadline.measure(model, W, tmp_path / "run", family="soft_prompt,few_shot", sizes=(1, 8), **SMALL)
    assert not (tmp_path / "run").exists()


def test_where_no_family_can_be_carried_the_reason_is_said(model):
    with pytest.raises(UserError, match="Too few items"):
        carried(model, W, RunSpec(family="all", items=500), Priors(model))


def test_the_reason_stands_on_the_screen_in_the_plan_the_record_and_the_reports(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(plan.BUDGETS, "ci", FEW)
    monkeypatch.setattr(specs, "COMMON", ("soft_prompt", "few_shot"))
    asked = small(family="all", sizes="1,8", out=tmp_path / "run")
    code, out, said = call(capsys, "measure", *asked)
    assert code == 0, said
    assert "\nfew_shot is not measured: A context and reply of" in said
    assert "few_shot: not measured. A context and reply of" in " ".join(out.split())
    assert "few_shot: not measured. A context and reply of" in (tmp_path / "run" / "report.html").read_text()
    stored = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert stored["spec"]["family"] == ["soft_prompt", "few_shot"], "what was asked for"
    assert list(stored["extra"]["not_measured"]) == ["few_shot"]
    result = leadline.Result.load(tmp_path / "run")
    assert "few_shot" not in result.families
    assert any(note.startswith("few_shot: not measured.") for note in headline(result).notes)
    told = plan_lines(RunSpec(family="all", sizes=(1, 8), **SMALL), W, load("organism:random"))
    assert any(line.startswith("  few_shot is not measured: A context") for line in told)
    assert not any("few_shot, sizes" in line for line in told)


def test_rewards_leave_families_of_texts_out(model):
    """Their search, and the text that a mixture stands around, need a target."""
    earned = Behaviour.model_validate(
        {
            "name": "earned",
            "contexts": questions()[:40],
            "reward": {"scorer": "style/capitals", "cut": 0.5, "tokens": 4},
        }
    )
    kept, left_out = carried(model, earned, RunSpec(family="all", sizes=(1,), **SMALL), Priors(model))
    assert set(left_out) == {"vocab_mixture", "text_prompt", "few_shot"}
    assert set(kept.family) == set(COMMON) - set(left_out)
    assert "a reward gives none" in left_out["text_prompt"]
