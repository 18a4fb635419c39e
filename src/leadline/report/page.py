"""One self-contained HTML file for one run or several: written whole or not at all, safe to open, the same every time.

The page has no script. Its figures are inline SVG, its content security policy lets nothing in but its own style
sheet (by hash), and everything that came from a model or a file is escaped. Knows nothing of how numbers are computed.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from leadline.cache import whole_file
from leadline.information import at_least, at_most
from leadline.report import figures
from leadline.report.fragility import READING, read_fragility, sections
from leadline.report.headline import Subject, behaviour_label, controls_of, distance_of, headline, subjects
from leadline.report.rendering import PALETTE, dressed, themed_svg
from leadline.report.replies import REPLIES_A_CELL, reply_cells
from leadline.report.rows import (
    bound_rows,
    certified_rows,
    cost_words,
    luck_words,
    outcome_rows,
    size_rows,
    threshold_rows,
    weight_words,
)
from leadline.report.ways import cheapest_words, message_lines, text_lines, ways_in
from leadline.report.words import NONE, about, interval, plain, size_words
from leadline.result import Result
from leadline.sentences import rank_words
from leadline.spec import UserError

LISTED = 24
FIELD_CHARACTERS = 3000
# No script at all. The one style sheet is named by its hash; images are the icon in the page itself; nothing is
# fetched, framed, submitted or re-based. Figures carry presentation attributes, which the policy does not concern.
POLICY = "default-src 'none'; style-src '{style}'; img-src data:; base-uri 'none'; form-action 'none'"


def write_page(runs: Path | str | Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Write the page of one run directory, or of several beside each other, and return its path.

    out: the file to write; by default report.html in the (first) run directory.
    Raises UserError where a record is missing or damaged, or the file cannot be written.
    """
    folders = [Path(runs)] if isinstance(runs, Path | str) else [Path(run) for run in runs]
    if not folders:
        raise UserError("there is no run to report", "report", "Name at least one run directory.")
    text = render([(folder, Result.load(folder)) for folder in folders])
    path = Path(out) if out is not None else folders[0] / "report.html"
    _write(path, text)
    return path


def render(runs: Sequence[tuple[Path, Result]]) -> str:
    """The page as text: the same records give the same text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("leadline.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["policy"] = _policy
    pages = [_run_context(folder, result, place) for place, (folder, result) in enumerate(runs)]
    title = pages[0]["label"] if len(pages) == 1 else f"{len(pages)} runs"
    return environment.get_template("page.html.j2").render(
        runs=pages, title=title, palette=PALETTE, replies=REPLIES_A_CELL
    )


def policy_of(page: str) -> str:
    """The content security policy that a rendered page carries, for servers that repeat it as a header."""
    mark = 'http-equiv="Content-Security-Policy" content="'
    start = page.index(mark) + len(mark)
    return str(Markup(page[start : page.index('"', start)]).unescape())


def _policy(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(str(style).encode()).digest()).decode()
    return POLICY.format(style=f"sha256-{digest}")


def _write(path: Path, text: str) -> None:
    """The whole file or none: a reader never sees half a page, a full disk leaves the old one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole_file(path, text.encode())
    except OSError as error:
        how = "Name a file in a folder that can be written, on a disk with room."
        raise UserError(f"the page cannot be written: {error.strerror or error}", str(path), how) from error


# What one run shows ----------------------------------------------------------------------------------------------


def _run_context(folder: Path, result: Result, place: int) -> dict[str, Any]:
    spec, head = result.spec, headline(result)
    behaviour, provenance = spec.get("behaviour", {}), spec.get("provenance", {})
    distance, reason = distance_of(result)
    started = str(provenance.get("started", ""))
    return {
        "id": f"run{place}",
        "label": behaviour_label(spec),
        "behaviour": plain(behaviour.get("name", "")),
        "about": plain(behaviour.get("description", "")),
        "model": plain(provenance.get("model", spec["spec"].get("model", ""))),
        "hash": plain(spec.get("hash", ""))[:10],
        "started": plain(started[:16].replace("T", " ")),
        "headline": head,
        "readings": _readings(result),
        "figures": _figures(result, f"run{place}"),
        "reason": reason,
        "bounds": bound_rows(result),
        "cheapest": cheapest_words(result) if len(result.curves) > 1 else "",
        "texts": text_lines(result),
        "messages": message_lines(result),
        "certified": certified_rows(result.points),
        "weights": weight_words(result),
        "controls": [_control(subject) for subject in subjects(result)[1:]] if controls_of(result) else [],
        "rank": rank_words(distance) if distance is not None else "",
        "unreached": distance.unreached_controls if distance is not None else 0,
        "threshold": f"{result.threshold:g}",
        "sizes": size_rows(result),
        "many": len(result.curves) > 1,
        "thresholds": threshold_rows(result),
        "fragility": _fragility(folder, result),
        "luck": luck_words(result),
        "outcomes": outcome_rows(result.points),
        "cost": cost_words(result.points),
        "scored": behaviour.get("kind") != "loss",
        "cells": reply_cells(folder, result),
        "provenance": _provenance(spec),
    }


def _fragility(folder: Path, result: Result) -> dict[str, Any] | None:
    """What the solutions bear, where `leadline fragility` has told."""
    record = read_fragility(folder, result)
    if record is None:
        return None
    told = {name: record[name] for name in ("confidence", "loss_items", "test_items", "paraphrases")}
    return {**told, "sections": sections(record), "reading": READING}


def _readings(result: Result) -> list[dict[str, str]]:
    """The few numbers that stand large beside the headline, each with its kind."""
    distance, _ = distance_of(result)
    if distance is None:
        return []
    upper, lower, excess = distance.upper, distance.lower, distance.excess
    readings = [
        {
            "name": "at most", "value": at_most(upper.value) if upper else distance.unbounded,
            "kind": f"{upper.kind}, {distance.family}" if upper else f"no upper bound, {distance.family}",
        },
        {
            "name": "at least", "value": at_least(lower.value) if lower is not None else NONE,
            "kind": f"{lower.kind}, {distance.family}" if lower else "no lower bound",
        },
    ]  # fmt: skip
    if excess is not None:
        readings.append(
            {
                "name": f"{'nearer' if excess.value >= 0 else 'farther'} than {distance.whom}",
                "value": about(abs(excess.value)),
                "kind": f"estimate, Delta {interval(excess)}",
            }
        )
    own = subjects(result)[0]
    if own.direct_bits is not None:
        readings.append({"name": "spelled out", "value": at_most(own.direct_bits), "kind": "direct cost (prefill)"})
    return readings


def _figures(result: Result, prefix: str) -> list[dict[str, Any]]:
    """Each figure wide and narrow, with what it says in words for those who do not see it."""
    reads = "; ".join(f"{row['name']}: {row['lower']} to {row['upper']}" for row in map(_control, subjects(result)))
    sizes = "; ".join(f"size {row.size}: score {row.score}, loss {row.loss} bits" for row in size_rows(result))
    passes = [
        f"{family}, {size_words(family, figures.reported_size(result, family))}: the score passes "
        f"{result.threshold:g} between {about(ends[0])} and {about(ends[1])} bits of KL"
        for family in result.curves
        if (ends := figures.bracket(result, family)) is not None
    ]
    made: list[dict[str, Any]] = []
    for name, draw, words in (
        ("sounding", figures.sounding, f"Distances in bits, lower to upper bound. {reads}"),
        ("ways", ways_in, f"Bits against score, a line a family. {cheapest_words(result)}"),
        ("size", figures.size_curve, f"Size against score and loss on held-out items. {sizes}"),
        ("rate", figures.rate_distortion, f"KL in bits against loss and score. {'; '.join(passes)}"),
    ):
        for width in ("wide", "narrow"):
            chart = draw(result, width == "wide")
            if chart is None:
                break
            svg = themed_svg(dressed(chart), f"{prefix}-{name}-{width}", words)
            made.append({"name": name, "width": width, "svg": Markup(svg), "words": "; ".join(passes)})
    return made


def _control(subject: Subject) -> dict[str, str]:
    return {
        "name": plain(subject.name),
        "kind": plain(subject.kind),
        "target": plain(subject.target, 200),
        "size": str(subject.size or ""),
        "upper": at_most(subject.upper) if subject.upper is not None else subject.unbounded,
        "lower": at_least(subject.lower) if subject.lower is not None else NONE,
        "excess": about(subject.excess.value) if subject.excess else NONE,
        "interval": interval(subject.excess),
        "direct": about(subject.direct_bits),
    }


def _provenance(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every field of spec.json, in groups; those the user set are marked."""
    whole = {key: value for key, value in spec.items() if key != "passed"}
    loose = {key: value for key, value in whole.items() if not isinstance(value, Mapping | list)}
    groups = {"made with": {**whole.pop("provenance", {}), **loose}, "asked for": whole.pop("spec", {})}
    groups |= {key.replace("_", " "): value for key, value in whole.items() if key not in loose}
    passed = spec.get("passed") or {}
    return [
        {
            "name": plain(group),
            "fields": [
                {"name": plain(name), "value": plain(value, FIELD_CHARACTERS), "set": name in passed}
                for name, value in _flat("", fields)
            ],
            "marked": group == "asked for",
        }
        for group, fields in groups.items()
    ]


def _flat(name: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value) and len(value) <= LISTED:
        for place, inner in enumerate(value):
            yield from _flat(f"{name}.{place}" if name else str(place), inner)
    elif isinstance(value, list):
        yield name, f"{', '.join(map(str, value)) or NONE}{f' ({len(value)} in all)' if len(value) > LISTED else ''}"
    else:
        yield name, NONE if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
