"""leadline: how many bits of information does it take to push a frozen language model into a behaviour?

`measure` is the main job; `Result.load` reads a run again. Names load on first use, so that the command line, records
and report start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from leadline.behaviour import Behaviour as Behaviour
    from leadline.curve import Curve as Curve
    from leadline.information import Bits as Bits
    from leadline.information import Distance as Distance
    from leadline.measurement import measure as measure
    from leadline.model import FrozenModel as FrozenModel
    from leadline.result import NoDistance as NoDistance
    from leadline.result import Result as Result
    from leadline.spec import RunSpec as RunSpec
    from leadline.spec import UserError as UserError

_HOMES = {
    "Behaviour": "behaviour", "Bits": "information", "Curve": "curve", "Distance": "information",
    "FrozenModel": "model", "NoDistance": "result", "Result": "result", "RunSpec": "spec", "UserError": "spec",
    "measure": "measurement",
}  # fmt: skip
__all__ = ["__version__", *sorted(_HOMES)]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"leadline.{_HOMES[name]}"), name)
    raise AttributeError(f"leadline has no {name!r}; it has {', '.join(__all__)}")
