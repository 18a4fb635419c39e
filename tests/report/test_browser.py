"""The page in a real browser: it renders, nothing runs, nothing leaves the file, and it fits a phone."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from leadline.report import replies, write_page
from leadline.report.rendering import PALETTE

PlantRun = Callable[..., Path]

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
TARGET = "</script><script>window.__pwned=8</script>" + "W" * 60


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A running Chromium. Without one the tests are skipped, or fail where LEADLINE_REQUIRE_BROWSER=1."""
    path, reason = shutil.which("chromium"), "there is no chromium on the PATH"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path, reason = None, "playwright is not installed"
    if path is None:
        if os.environ.get("LEADLINE_REQUIRE_BROWSER") == "1":
            pytest.fail(f"LEADLINE_REQUIRE_BROWSER=1 and {reason}")
        pytest.skip(reason)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


LETTER_HEIGHTS = """
[...document.querySelectorAll('svg.figure')].filter(figure => figure.checkVisibility()).flatMap(figure =>
  [...figure.querySelectorAll('text')].map(t => parseFloat(getComputedStyle(t).fontSize) * figure.getScreenCTM().a))
"""
FILLS = "[...document.querySelectorAll('svg.figure text')].map(text => getComputedStyle(text).fill)"
ATTEMPTS = """address => {
  const script = document.createElement('script');
  script.textContent = 'window.__pwned = 1';
  const image = new Image();
  image.src = address;
  const floating = document.createElement('p');
  floating.setAttribute('style', 'position: fixed');
  document.body.append(script, image, floating);
  document.body.insertAdjacentHTML('beforeend', '<b onclick="window.__pwned = 2">x</b>');
  document.body.lastChild.click();
}"""


@pytest.fixture(scope="module")
def storm(plant_shared: PlantRun) -> str:
    """Address of the page of a run whose names, targets and replies all try to break out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replies, "REPLIES_A_CELL", 50)
        return write_page(plant_shared(hostile=True, target=TARGET, diverged=True)).as_uri()


@contextmanager
def opened(chromium: Any, address: str, **context: Any) -> Iterator[tuple[Any, list[str], list[str]]]:
    """A tab on this address, with what it logs (errors and warnings) and every address it asks for."""
    tab = chromium.new_context(**context).new_page()
    complaints: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(address)
    yield tab, complaints, requests
    tab.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_renders_safely_and_fits(chromium: Any, storm: str, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900}
    with opened(chromium, storm, viewport=size, color_scheme=scheme) as (tab, complaints, requests):
        tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert tab.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
        assert tab.evaluate("window.__pwned") is None
        assert tab.locator("script, img, iframe").count() == 0
        assert "not yours" not in tab.locator("h1").all_inner_texts()[0]
        # one of the two drawings of each figure is shown, in the reader's colours, with letters that can be read
        assert tab.locator("svg.figure >> visible=true").count() == 3
        ink = PALETTE["ink"][scheme == "dark"]
        words = tab.locator("svg.figure text >> visible=true").first
        assert tab.evaluate("ink => getComputedStyle(document.body).color === ink", rgb(ink))
        assert words.is_visible()
        assert min(tab.evaluate(LETTER_HEIGHTS)) >= 10
        assert rgb(ink) in tab.evaluate(FILLS)
        assert complaints == []
        assert requests == [storm]


def test_the_policy_stops_what_escaping_would_miss(chromium: Any, shared_run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        with opened(chromium, (shared_run / "report.html").as_uri()) as (tab, complaints, _):
            tab.evaluate(ATTEMPTS, f"http://127.0.0.1:{listener.getsockname()[1]}/leak")
            assert tab.evaluate("window.__pwned") is None
            assert tab.evaluate("getComputedStyle(document.body.querySelector('p[style]')).position") == "static"
            with pytest.raises(TimeoutError):
                listener.accept()
            assert len(complaints) >= 4  # each attempt is refused by name


def test_several_runs_fit_a_phone(chromium: Any, plant_run: PlantRun, tmp_path: Path) -> None:
    runs = [plant_run("a", target=TARGET), plant_run("b", kind="loss", target=None, name="skip/" + "n" * 80)]
    page = write_page(runs, tmp_path / "all.html").as_uri()
    with opened(chromium, page, viewport={"width": 390, "height": 900}) as (tab, complaints, _):
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        assert complaints == []


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[place : place + 2], 16)) for place in (1, 3, 5))})"
