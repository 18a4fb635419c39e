"""Tracking: what a run finds, sent to an experiment tracker while it goes on, by way of accelerate's trackers.

A reporter around another one. Knows nothing of what is run; what is tracked is a copy for people to watch, the run's
own records stay the only ones that anything is read from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.tracking import (  # type: ignore[import-untyped]
    LOGGER_TYPE_TO_CLASS,
    get_available_trackers,
)
from accelerate.utils import LoggerType  # type: ignore[import-untyped]

from leadline.progress import Reporter
from leadline.result import NoDistance, Result
from leadline.spec import UserError

FOLDER = "tracking"  # in the run directory, for trackers that write files
NUMBERS = ("score", "loss_bits", "kl_bits", "beta")  # of a point without an estimator
BOUNDS = ("upper_bits", "lower_bits", "estimate_bits")  # of one with


def known_trackers(names: str) -> list[str]:
    """The trackers of "tensorboard,wandb" or "all" (those that are installed). Raises UserError for one that accelerate
    does not know or whose package is not installed."""
    built_in = {str(kind) for kind in LoggerType} - {"all"}
    own = [name for name in LOGGER_TYPE_TO_CLASS if name not in built_in]  # what a program registered itself
    there = [*map(str, get_available_trackers()), *own]
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if "all" in wanted:
        if not there:
            raise UserError("No tracker is installed", "--track all", "Run `pip install tensorboard`, or another one.")
        return there
    for name in wanted or [names]:
        if name not in {*built_in, *own}:
            choice = ", ".join(sorted({*built_in, *own}))
            raise UserError(f"There is no tracker {name!r}", "--track", f"Choose of {choice}, or all.")
        if name not in there:
            package = name.replace("_", "-")
            raise UserError(f"The tracker {name} is not installed", "--track", f"Run `pip install {package}`.")
    return list(dict.fromkeys(wanted))


@final
class TrackingReporter(Reporter):
    """Passes all it is told on to `inner`, and the numbers of finished records to trackers too.

    names:  as `known_trackers` gives them
    folder: the run directory;  config: plain values that the trackers show beside the run
    Trackers are begun with the first record, so that a run that is refused leaves nothing behind. One that fails is
    given up with a note.
    """

    def __init__(self, inner: Reporter, names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> None:
        self._inner, self._names, self._folder = inner, list(names), folder
        self._config = {
            name: value if isinstance(value, str | int | float) else str(value) for name, value in config.items()
        }
        self._accelerator: Any = None
        self._broken, self._step = False, 0

    def stage(self, what: str) -> None:
        self._inner.stage(what)

    def progress(self, done: float, total: float, detail: str = "") -> None:
        self._inner.progress(done, total, detail)

    def scored(self, score: float) -> None:
        self._inner.scored(score)

    def note(self, text: str) -> None:
        self._inner.note(text)

    def recorded(self, points: Sequence[Mapping[str, Any]], done: int) -> None:
        self._inner.recorded(points, done)
        self._step = done
        self._log(point_values(points))

    def finished(self, result: Result) -> None:
        """The run ended well: its bounds, a line each in the trackers."""
        self._log(bound_values(result))

    def close(self) -> None:
        if self._accelerator is not None and not self._broken:
            self._accelerator.end_training()
        self._inner.close()

    def _log(self, values: dict[str, float]) -> None:
        if not values or self._broken:
            return
        try:
            if self._accelerator is None:
                self._accelerator = Accelerator(log_with=self._names, project_dir=str(self._folder / FOLDER))
                self._accelerator.init_trackers("leadline", config=self._config)
            self._accelerator.log(values, step=self._step)
        except Exception as error:  # whatever a tracker raises: the run's own records do not need it
            self._broken = True
            self._inner.note(f"Tracking has stopped, and the run goes on: {error}")


def point_values(points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of a record's points under WHO/FAMILY/SIZE/SPLIT/NUMBER, WHO the behaviour or a control's name; those
    of a bound under WHO/FAMILY/SIZE/ESTIMATOR/NUMBER. What is null or not finite is left out."""
    found: dict[str, float] = {}
    for point in points:
        what = f"{point['control'] or 'behaviour'}/{point['family']}/{point['size']}"
        plain = point["estimator"] == ""
        place = f"{what}/{point['split'] if plain else point['estimator']}"
        for name in NUMBERS if plain else BOUNDS:
            value = point[name]
            if value is not None and math.isfinite(value):
                found[f"{place}/{name}"] = float(value)
    return found


def bound_values(result: Result) -> dict[str, float]:
    """The certified bounds of every family under bounds/FAMILY/NUMBER, and of all together; nothing of a behaviour
    that has a loss alone."""
    found: dict[str, float] = {}
    try:
        frontier = result.cheapest()
    except NoDistance:
        return found
    bits = {(family, "upper"): distance.upper for family, distance in frontier.distances.items()}
    bits |= {(family, "lower"): distance.lower for family, distance in frontier.distances.items()}
    bits["all families", "upper"] = frontier.upper
    for (family, side), bound in bits.items():
        if bound is not None and math.isfinite(bound.value):
            found[f"bounds/{family}/{side}_bits"] = bound.value
    return found
