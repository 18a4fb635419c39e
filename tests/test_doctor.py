"""The doctor says what ails a part and goes on to the next."""

from __future__ import annotations

import re

import pytest

from commands import call
from leadline import doctor, smollm2
from leadline.cache import cache_folder


def test_a_healthy_machine(capsys):
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    lines = out.splitlines()
    assert all(line.startswith("ok   ") for line in lines)
    assert [line.split()[1] for line in lines] == [
        "leadline:", "torch:", "transformers:", "cache:", "smollm2:", "speed:", "engine:", "figures:",
    ]  # fmt: skip
    assert str(cache_folder()) in out
    assert re.search(r"64 sequences of smollm2 take [\d.]+ s a training step, [\d.]+ times the floor", out)


def test_a_part_that_fails_is_named_and_the_others_are_looked_at(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path / "file" / "below"))
    code, out, _ = call(capsys, "doctor")
    assert code == 1
    assert "FAIL cache: " in out
    assert "ok   figures: " in out


@pytest.mark.parametrize("damaged", [True, False])
def test_weights_that_are_missing_are_no_illness_and_damaged_ones_are(monkeypatch, tmp_path, damaged):
    monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path))
    if damaged:
        smollm2.gguf_path().parent.mkdir()
        smollm2.gguf_path().write_bytes(b"GGUF")
    check = {check.name: check for check in doctor.checks()}["smollm2"]
    assert check.ok is (False if damaged else None), "what is not there is neither well nor ill"
    assert ("damaged" if damaged else "not fetched yet") in check.said
