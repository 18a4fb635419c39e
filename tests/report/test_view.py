"""`view` serves the page to this machine only, with the policy as a header."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from leadline.report.page import policy_of
from leadline.report.view import application, view
from leadline.spec import UserError

PlantRun = Callable[..., Path]


@pytest.fixture
def served(plant_run: PlantRun) -> Iterator[tuple[Path, int]]:
    """A run directory and the port that a server in a process of its own gives it."""
    run = plant_run()
    code = "import sys; from leadline.report.view import view; view(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = urlsplit(process.stdout.readline().strip())
    assert address.hostname == "127.0.0.1"
    yield run, int(address.port or 0)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()


def get(port: int, host: str = "", path: str = "/") -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={"Host": host} if host else {})
    response = connection.getresponse()
    found = response.status, response.headers, response.read().decode()
    connection.close()
    return found


def test_serves_the_page_with_its_policy(served: tuple[Path, int]) -> None:
    run, port = served
    status, headers, text = get(port)
    assert status == 200
    assert text.startswith("<!doctype html>")
    assert headers["Content-Security-Policy"] == f"{policy_of(text)}; frame-ancestors 'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert get(port, path="/cells")[0] == 404
    assert get(port, host="rebound.example")[0] == 400  # another site's name for this address
    (run / "points.parquet").unlink()
    status, _, text = get(port)
    assert (status, "points" in text) == (503, True)


def test_a_taken_port_is_one_message(plant_run: PlantRun) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="the port cannot be had"):
            view([plant_run()], taken.getsockname()[1], announce=lambda _: None)


@pytest.mark.parametrize("missing", ["starlette.applications", "uvicorn"])
def test_without_the_extra_the_message_names_it(
    plant_run: PlantRun, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"leadline\[view\]"):
        view([plant_run()])


def test_a_missing_run_is_named_before_anything_is_served(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        application([tmp_path / "nothing"])
