"""How a chart looks, and what it becomes: a PNG or SVG file, or inline SVG that takes its colours from its page.

Rendering is vl-convert's, without a browser and without a network. Knows nothing of what is drawn.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import altair as alt
import vl_convert

# Each colour of the figures, light and dark. The light values are also the names by which `themed_svg` finds them,
# so no two are the same.
PALETTE: dict[str, tuple[str, str]] = {
    "ink": ("#1d2a35", "#dce5ea"),
    "muted": ("#5a6772", "#97a6b1"),
    "grid": ("#e0e0d6", "#243541"),
    "deep": ("#0f5079", "#6fb9ea"),
    "shoal": ("#8f6326", "#d5a463"),
    "mark": ("#b23a24", "#f08a6c"),
    "kelp": ("#2f6f4f", "#74c69d"),
    "dusk": ("#6b4c9a", "#b79be0"),
    "coral": ("#b0487a", "#ec8fb8"),
    "slate": ("#3f5f6f", "#a3c1cf"),
}
INK, MUTED, GRID, DEEP, SHOAL, MARK, KELP, DUSK, CORAL, SLATE = (light for light, _ in PALETTE.values())
SERIES = (DEEP, SHOAL, KELP, DUSK, CORAL, SLATE, INK, MUTED)  # told apart in both modes, never the threshold's colour
SVG = "http://www.w3.org/2000/svg"
# What a static figure needs of SVG. Whatever else a renderer might emit (style, script, links) is left out.
ELEMENTS = {"svg", "g", "path", "rect", "line", "text", "tspan", "circle", "defs", "clipPath", "title"}
ATTRIBUTES = {
    "viewBox", "width", "height", "transform", "d", "x", "y", "x1", "x2", "y1", "y2", "dx", "dy", "cx", "cy", "r",
    "fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-dashoffset",
    "stroke-linecap", "stroke-linejoin", "stroke-miterlimit", "opacity", "text-anchor", "font-size", "font-weight",
    "font-style", "clip-path", "id", "display",
}  # fmt: skip


def dressed(chart: Any) -> Any:
    """A chart with the house's type and lines."""
    return chart.configure(
        font="Helvetica, Arial, sans-serif",
        padding={"left": 2, "top": 2, "right": 4, "bottom": 2},
        background="transparent",
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelColor=MUTED, titleColor=MUTED, gridColor=GRID, domainColor=MUTED, tickColor=MUTED, labelFontSize=12,
            titleFontSize=12, titleFontWeight="normal", tickSize=4, titlePadding=8, labelPadding=4,
        ),
        title=alt.TitleConfig(color=INK, fontSize=13, fontWeight=600, anchor="start", frame="group", offset=10),
        legend=alt.LegendConfig(
            labelColor=INK, labelFontSize=12, symbolSize=70, labelLimit=330, title=None, orient="top", columnPadding=18,
        ),
    )  # fmt: skip


def save_svg(chart: Any, path: Path) -> None:
    """Write a chart as an SVG file in its light colours."""
    path.write_text(vl_convert.vegalite_to_svg(chart.to_dict()), encoding="utf-8")


def save_png(chart: Any, path: Path, scale: float = 2.0) -> None:
    """Write a chart as a PNG file in its light colours on white; scale: device pixels a unit."""
    spec = chart.to_dict()
    spec.setdefault("config", {})["background"] = "#ffffff"
    path.write_bytes(vl_convert.vegalite_to_png(spec, scale=scale))


def themed_svg(chart: Any, prefix: str, title: str) -> str:
    """A chart as inline SVG without script, style or links, whose colours the page's style sheet replaces in the dark.

    prefix: makes ids unique on a page; title: read aloud in place of the drawing. What is under a pointer is named by
    <title> elements. The same chart gives the same text.
    """
    # a page has six charts, and checking each against the schema of Vega-Lite takes longer than drawing it
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(chart.to_dict(validate=False)))
    ids = {node.get("id"): f"{prefix}-{place}" for place, node in enumerate(n for n in root.iter() if n.get("id"))}
    clean = _clean(root, ids)
    assert clean is not None, "the renderer gave no svg element"
    for name in ("width", "height"):
        clean.attrib.pop(name)
    clean.set("class", "figure")
    clean.set("role", "img")
    clean.set("aria-label", title)
    return ElementTree.tostring(clean, encoding="unicode")


def _clean(node: ElementTree.Element, ids: dict[str | None, str]) -> ElementTree.Element | None:
    tag = node.tag.removeprefix(f"{{{SVG}}}")
    unseen = node.get("display") == "none" or (node.get("class") == "background" and not node.get("stroke"))
    if tag not in ELEMENTS or unseen:
        return None
    copy = ElementTree.Element(tag, {key: value for key, value in node.attrib.items() if key in ATTRIBUTES})
    if node.get("id"):
        copy.set("id", ids[node.get("id")])
    if clip := node.get("clip-path"):
        copy.set("clip-path", re.sub(r"#([^)]*)", lambda hit: f"#{ids[hit.group(1)]}", clip))
    if node.get("role") == "graphics-symbol" and node.get("aria-label") and not len(node):
        ElementTree.SubElement(copy, "title").text = node.get("aria-label")
    copy.text = node.text if tag in ("text", "tspan", "title") else copy.text
    copy.extend(child for child in (_clean(child, ids) for child in node) if child is not None)
    return copy
