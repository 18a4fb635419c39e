"""How a model is run is measured once, remembered, and goes on as it began."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import StableLmConfig, StableLmForCausalLM

import leadline
from commands import FEW
from leadline import plan, probe
from leadline.probe import Compute, choose, overridden, recorded
from models import random_model


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The times that the probe sees: bfloat16 with blockwise attention is fastest. A list of what was timed."""
    monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path))
    monkeypatch.setattr(probe, "TINY_PARAMETERS", 0)
    seen = []

    def seconds(network: torch.nn.Module) -> float:
        way = (str(network.dtype).removeprefix("torch."), network.config._attn_implementation)
        seen.append(way)
        return {("float32", "sdpa"): 3.0, ("float32", "blockwise"): 2.0, ("bfloat16", "sdpa"): 1.5}.get(way, 1.0)

    monkeypatch.setattr(probe, "_step_seconds", seconds)
    return seen


def test_a_tiny_model_runs_in_float32_and_on_few_threads(monkeypatch):
    network = random_model("llama").network
    for threads, wanted in ((1, 1), (2, 2), (64, probe.TINY_THREADS)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found = choose(network, "tiny")
        assert (found.dtype, found.attention, found.threads) == ("float32", "eager", wanted)


def test_the_fastest_way_is_taken_and_remembered(measured):
    network = random_model("llama").network
    found = choose(network, "one")
    assert (found.dtype, found.attention, found.threads) == ("bfloat16", "blockwise", torch.get_num_threads())
    assert "bfloat16 blockwise 1.00" in found.why
    assert len(set(measured)) == 4
    assert (network.dtype, network.config._attn_implementation) == (torch.float32, "eager")
    count = len(measured)
    assert choose(network, "one") == found
    assert len(measured) == count
    choose(network, "another model")
    assert len(measured) == 2 * count


def test_eager_attention_is_measured_where_only_fused_attention_is_beside_it(measured):
    config = StableLmConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    found = choose(StableLmForCausalLM(config).eval(), "one")
    assert {way for _, way in measured} == {"eager", "sdpa"}
    assert (found.attention, found.dtype) == ("eager", "float32"), "1.0 s for 1.5 and 3.0"


@pytest.mark.parametrize("architecture", ["mpt", "gemma"])
def test_attention_that_a_model_does_not_have_is_not_measured(measured, architecture):
    assert choose(random_model(architecture).network, "one").attention == "eager"
    assert {way for _, way in measured} == {"eager"}


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\x00", b'{"dtype": "float32"}', b"[]"])
def test_a_damaged_memory_is_measured_again(measured, tmp_path, damage):
    network = random_model("llama").network
    found = choose(network, "one")
    (path,) = tmp_path.glob("probe/*.json")
    path.write_bytes(damage)
    assert choose(network, "one") == found
    assert json.loads(path.read_text())["dtype"] == "bfloat16"


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(measured, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path / "file"))
    assert choose(random_model("llama").network, "one").dtype == "bfloat16"


def test_a_step_is_really_taken():
    network = random_model("llama").network
    assert probe._step_seconds(network) > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_run_goes_on_as_it_was_recorded():
    provenance = {"dtype": "bfloat16", "attention": "sdpa", "threads": 4, "compute": "measured", "torch": "2"}
    assert recorded(provenance) == Compute("bfloat16", "sdpa", 4, "measured")
    for broken in ({}, {**provenance, "threads": None}, {**provenance, "threads": "many"}):
        assert recorded(broken) is None


def test_what_is_asked_for_wins_over_the_probe():
    found = Compute("bfloat16", "eager", 2, "measured")
    assert overridden(found, "auto") == found
    assert overridden(found, "float32").why == "float32 was asked for; the rest: measured"
    for asked, expected in [
        ("float32", ("float32", "eager", 2)), ("sdpa", ("bfloat16", "sdpa", 2)), ("1", ("bfloat16", "eager", 1)),
        ("float32,sdpa,4", ("float32", "sdpa", 4)), ("4, float32", ("float32", "eager", 4)),
    ]:  # fmt: skip
        had = overridden(found, asked)
        assert (had.dtype, had.attention, had.threads) == expected


def test_a_run_computes_as_it_was_asked_to(tmp_path, monkeypatch, tiny_model_folder):
    """From the spec to the loaded network and into the record, against the tiny model's own float32 and eager."""
    monkeypatch.setitem(plan.BUDGETS, "ci", FEW)
    result = leadline.measure(
        str(tiny_model_folder), out=tmp_path / "run", scale="ci", sizes=1, controls=0, items=4, draws=64, prior_draws=0,
        compute="bfloat16,sdpa",
    )  # fmt: skip
    found = result.spec["provenance"]
    assert (found["dtype"], found["attention"], found["threads"]) == ("bfloat16", "sdpa", 1)
