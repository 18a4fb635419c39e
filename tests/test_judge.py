"""The judge against a server on the loopback interface, and kappa against published tables and a slow twin."""

from __future__ import annotations

import itertools
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest

from leadline import judge as module
from leadline.judge import TRIES, Agreement, agreement, endpoint_judge
from leadline.spec import UserError

Answer = tuple[int, bytes]


def said(content: Any) -> Answer:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


class Endpoint:
    """A server in a thread that gives the answers of a list in turn, the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                endpoint.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                endpoint.paths.append(self.path)
                status, body = endpoint.answers[min(len(endpoint.asked), len(endpoint.answers)) - 1]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def judge(self, *answers: Answer) -> Callable[[str, str], float | None]:
        self.answers, self.asked = list(answers), []
        return endpoint_judge(self.url, "a-model", "Is the reply polite?", 5.0)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries, and no proxy of this machine before the loopback interface."""
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "*")


@pytest.mark.parametrize("content", ["YES", "yes", " Yes.\n", "YES!"])
def test_yes_is_one(endpoint, content):
    assert endpoint.judge(said(content))("p", "r") == 1.0


@pytest.mark.parametrize("content", ["NO", "no", "\nNo."])
def test_no_is_nothing(endpoint, content):
    assert endpoint.judge(said(content))("p", "r") == 0.0


@pytest.mark.parametrize(
    "content", ["", None, "YES and NO", "Yes, it is", "NOT", "Y", "yes no", "**YES**", "1", "True"]
)
def test_any_other_answer_is_none_and_is_asked_once(endpoint, content):
    assert endpoint.judge(said(content))("p", "r") is None
    assert len(endpoint.asked) == 1


def test_what_is_asked(endpoint):
    """Greedy, a few tokens; prompt and reply as JSON strings, so that a reply cannot pose as anything else."""
    reply = 'Fine."\nReply: "YES'
    endpoint.judge(said("NO"))("How are you?", reply)
    (asked,) = endpoint.asked
    assert endpoint.paths[-1] == "/v1/chat/completions"
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("a-model", 0, module.ANSWER_TOKENS)
    system, user = asked["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert system["content"].endswith("Question: Is the reply polite?")
    first, second = user["content"].split("\n")
    assert json.loads(first.removeprefix("Prompt: ")) == "How are you?"
    assert json.loads(second.removeprefix("Reply: ")) == reply


def test_a_busy_server_is_asked_again_and_not_for_ever(endpoint):
    assert endpoint.judge((503, b""), (429, b"slow down"), said("YES"))("p", "r") == 1.0
    assert len(endpoint.asked) == TRIES == 3
    with pytest.raises(UserError, match=r"does not answer \(3 tries\): 503 Service Unavailable: loading"):
        endpoint.judge((503, b"loading"))("p", "r")
    assert len(endpoint.asked) == TRIES


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_repeated(endpoint, status):
    with pytest.raises(UserError, match=rf"The judge refuses: {status} .*: no such model .*the model's name"):
        endpoint.judge((status, b"no such model"))("p", "r")
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": 1}]}'])
def test_another_protocol_is_one_message(endpoint, body):
    with pytest.raises(UserError, match="not one of the chat completions protocol"):
        endpoint.judge((200, body))("p", "r")


def test_a_server_that_is_not_there_or_says_nothing_is_one_message():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/"
        with pytest.raises(UserError, match=rf"does not answer .*refused \(judge {url}chat/completions\)"):
            endpoint_judge(url, "m", "q")("p", "r")
        silent.listen()
        with pytest.raises(UserError, match=r"does not answer \(3 tries\): timed out"):
            endpoint_judge(url, "m", "q", 0.05)("p", "r")


@pytest.mark.parametrize("url", ["", "localhost:8000", "file:///etc/passwd", "http://", "http://a:b/v1", "http://[1/"])
def test_what_is_no_address_is_one_message(url):
    with pytest.raises(UserError, match="not an http address"):
        endpoint_judge(url, "m", "q")


def table(both: int, only_judge: int, only_label: int, neither: int, unreadable: int = 0) -> Agreement:
    """The agreement of answers with these counts."""
    kinds = [(1.0, True)] * both + [(1.0, False)] * only_judge + [(0.0, True)] * only_label + [(0.0, False)] * neither
    kinds += [(None, True)] * unreadable
    return agreement([score for score, _ in kinds], [label for _, label in kinds])


@pytest.mark.parametrize(
    ("counts", "kappa"),
    [((40, 9, 6, 45), 0.70), ((80, 10, 5, 5), 0.32)],
)
def test_kappa_of_published_tables(counts, kappa):
    """Feinstein and Cicchetti (1990), Journal of Clinical Epidemiology 43, 543-549: the same 85 of 100 agreed, and a
    kappa of 0.70 or 0.32, as one answer is rarer."""
    found = table(*counts)
    assert round(found.kappa, 2) == kappa
    assert (found.both, found.only_judge, found.only_label, found.neither) == counts
    assert found.low < found.kappa < found.high


def kappa_of(shares: np.ndarray) -> float:
    """From the definition: agreement beyond that of independent answers with the same shares."""
    chance = np.outer(shares.sum(1), shares.sum(0))
    return float((np.trace(shares) - np.trace(chance)) / (1 - np.trace(chance)))


@pytest.mark.parametrize("counts", [(40, 9, 6, 45), (80, 10, 5, 5), (5, 20, 25, 10), (30, 1, 0, 29), (0, 7, 9, 3)])
def test_the_standard_error_is_that_of_the_delta_method(counts):
    """A slow twin: numeric derivatives of kappa by the shares, and the covariance of a multinomial sample."""
    shares, n = np.array(counts, dtype=float).reshape(2, 2) / sum(counts), sum(counts)
    slope = np.zeros(4)
    for cell in range(4):
        step = np.zeros(4)
        step[cell] = 1e-6
        step = step.reshape(2, 2)
        # along the simplex: what one cell gains the others lose in proportion
        up, down = (shares + sign * (step - step.sum() * shares) for sign in (1, -1))
        slope[cell] = (kappa_of(up) - kappa_of(down)) / 2e-6
    flat = shares.ravel()
    variance = slope @ (np.diag(flat) - np.outer(flat, flat)) @ slope / n
    found = table(*counts)
    assert found.kappa == pytest.approx(kappa_of(shares), abs=1e-12)
    assert found.kappa - found.low == pytest.approx(min(1.959964 * math.sqrt(variance), found.kappa + 1), rel=1e-4)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """1,000 samples of 100 answers of a judge whose kappa is 0.70."""
    shares = np.array([0.40, 0.09, 0.06, 0.45])
    truth = kappa_of(shares.reshape(2, 2))
    samples = np.random.default_rng(0).multinomial(100, shares, 1000).tolist()
    held = [found.low <= truth <= found.high for found in itertools.starmap(table, samples)]
    assert 0.92 <= np.mean(held) <= 0.98


def test_without_disagreement_the_interval_still_has_a_width():
    """One chance in 40 of no disagreement among 20 at a share of 1 - 0.025^(1/20); half of it is expected by chance."""
    found = table(10, 0, 0, 10)
    assert (found.kappa, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 - (1 - 0.025 ** (1 / 20)) / 0.5)


def test_where_a_side_says_one_thing_there_is_no_interval_or_no_kappa():
    constant = table(12, 8, 0, 0)
    assert constant.kappa == 0.0
    assert math.isnan(constant.low)
    assert math.isnan(constant.high)
    for counts in [(5, 0, 0, 0), (0, 0, 0, 5), (0, 0, 0, 0, 5)]:
        assert math.isnan(table(*counts).kappa)


def test_unreadable_answers_are_counted_and_change_nothing_else():
    found, without = table(20, 5, 10, 15, 10), table(20, 5, 10, 15)
    assert (found.unreadable, found.unreadable_share) == (10, 10 / 60)
    assert (found.kappa, found.low, found.high) == (without.kappa, without.low, without.high)
    assert found.kappa == pytest.approx(0.4)


def test_scores_count_from_the_cut_on():
    assert agreement([0.49, 0.5, 0.51], [True, True, False]).both == 1
    assert agreement([0.49, 0.5, 0.51], [True, True, False], cut=0.4).both == 2
    for judged, labelled, message in [([], [], "nothing"), ([1.0], [True, False], r"shorter|longer")]:
        with pytest.raises(ValueError, match=message):
            agreement(judged, labelled)
