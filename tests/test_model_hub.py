"""Hub ids: pinned to a commit, quick to fail without a network, and read from the local cache where it holds them."""

from __future__ import annotations

import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import transformers

from commands import save
from leadline import model as models
from leadline.model import load
from leadline.probe import Compute
from leadline.spec import UserError
from models import random_model, word_tokenizer, words


@pytest.fixture
def folder(tmp_path) -> Path:
    made = random_model("llama")
    return save(tmp_path / "llama", made.network, made.tokenizer)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A hub that refuses connections, and an empty local cache of it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["owner/name", "hf:owner/name", "hf:name", "owner/name@v1"])
def test_a_hub_that_is_not_there_is_said_within_five_seconds(offline, name):
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"hub cannot be reached \(--model .*name.*\). Go online"):
        load(name)
    assert time.monotonic() - begin < 5


def test_a_hub_that_never_answers_is_not_waited_for(offline, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(models, "HUB_SECONDS", -0.8)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: never.wait(60))
    begin = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached"):
        load("owner/name")
    never.set()
    assert time.monotonic() - begin < 5


class Hub(BaseHTTPRequestHandler):
    """A hub that knows nothing, and says so as the real one does."""

    def do_GET(self) -> None:
        known = "/revision/" in self.path
        self.send_response(404)
        self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("name", "said"), [("owner/name", "no such model"), ("hf:owner/name@v2", "no such revision")])
def test_what_the_hub_does_not_know_is_said(offline, monkeypatch, name, said):
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(UserError, match=rf"The hub knows {said} \(--model {name.removeprefix('hf:')}\)"):
            load(name)
        server.shutdown()
        serving.join()


def test_what_the_local_hub_cache_holds_needs_no_network(offline, folder, monkeypatch):
    commit = "0123456789" * 4
    snapshot = offline / "models--owner--name" / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    for offline_is_known in (False, True):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline_is_known)
        model = load("owner/name")
        assert (model.name, model.revision) == ("owner/name", commit)
        assert model.weight_hash == load(str(folder)).weight_hash


def test_a_pinned_commit_stays_pinned(folder, monkeypatch):
    """Loading again in another dtype once took the newest commit instead."""
    asked = []
    inner = transformers.AutoModelForCausalLM.from_pretrained

    def record(source: str, revision: str | None = None, **named: object) -> object:
        asked.append((source, revision))
        return inner(folder, **named)

    tokenizer = word_tokenizer(words())
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: type("Info", (), {"sha": "abc123"}))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", record)
    load("hf:owner/name@v1").with_compute(Compute("bfloat16", "eager", 1, ""))
    assert set(asked) == {("owner/name", "abc123")}
    assert len(asked) == 3
