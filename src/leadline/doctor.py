"""`leadline doctor`: what this machine has and whether the main parts work here."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

from leadline.cache import cache_folder

ROWS, TOKENS = 64, 4  # of the training step that is timed: sequences, and soft tokens of each


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, whether it is well (None: there was nothing to look at), and what was found."""

    name: str
    ok: bool | None
    said: str


class NotThere(Exception):
    """What a check looks at is not here yet."""


def checks() -> Iterator[Check]:
    """The checks, cheapest first; each is run when it is asked for."""
    for name, look in (
        ("leadline", lambda: f"{version('leadline')}, Python {platform.python_version()}, {platform.platform()}"),
        ("torch", _torch),
        ("transformers", lambda: version("transformers")),
        ("cache", _cache),
        ("smollm2", _smollm2),
        ("speed", _speed),  # before a tiny model is loaded, which leaves torch with one thread
        ("engine", _engine),
        ("figures", _figures),
    ):
        yield _run(name, look)


def _run(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except NotThere as missing:
        return Check(name, None, str(missing))
    except Exception as error:  # a doctor reports whatever ails a part and goes on to the next
        return Check(name, False, str(error) or type(error).__name__)


def _torch() -> str:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, {gpu}"


def _cache() -> str:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder):
        pass
    return f"{folder} can be written, {shutil.disk_usage(folder).free / 1e9:.0f} GB free"


def _smollm2() -> str:
    from leadline import smollm2

    if not smollm2.gguf_path().is_file():
        raise NotThere("weights not fetched yet; `python -m leadline.smollm2` does it once")
    return f"weights are here and whole ({smollm2.require()})"


def _engine() -> str:
    """One forward and backward pass of the random organism through the engine, against a closed form."""
    import torch

    from leadline.edits import EmbeddingEdit
    from leadline.engine import Context, Engine
    from leadline.model import load

    model = load("organism:random")
    values = torch.zeros(1, 1, model.hidden_size, requires_grad=True)
    found = Engine(model).target_logits([Context((1,), (2,), (3,))], EmbeddingEdit(values, (1,)))
    found.nats().sum().backward()  # type: ignore[no-untyped-call]
    total = float(found.logits.detach().float().softmax(-1).sum())
    if abs(total - 1) > 1e-4 or values.grad is None or not bool(values.grad.abs().sum() > 0):
        raise ValueError("a forward and backward pass gave no probabilities or no gradient")
    return f"forward and backward pass work ({model.num_parameters / 1e6:.2f} M parameters)"


def _speed() -> str:
    """A training step of the main job beside the floor."""
    from leadline import smollm2

    if not smollm2.gguf_path().is_file():
        raise NotThere("a training step of smollm2 is timed once its weights are here")
    import torch

    from leadline import behaviour, floor
    from leadline.costs import seconds_a_row
    from leadline.edits import EmbeddingEdit
    from leadline.engine import Engine, shared_prefix
    from leadline.items import sample_contexts
    from leadline.model import load
    from leadline.spec import RunSpec

    spec = RunSpec()
    model = load(spec.model)
    contexts = sample_contexts(model, behaviour.load(spec.behaviour), spec, ROWS)
    values = torch.zeros(len(contexts), TOKENS, model.hidden_size, device=model.device, requires_grad=True)
    change = EmbeddingEdit(values, (TOKENS,) * len(contexts))
    step = len(contexts) * seconds_a_row(model, contexts, change)[0]
    rate = floor.product_rate(model)
    least = floor.step_flops(Engine(model, shared_prefix(contexts)), contexts, change) / rate
    copied = floor.copy_rate(model)
    rates = f"{rate / 1e9:.0f} GFLOP/s of {model.compute.dtype} products, {copied / 1e9:.0f} GB/s copied"
    return (
        f"{len(contexts)} sequences of {spec.model} take {step:.2f} s a training step, {step / least:.1f} times the "
        f"floor ({rates}, {model.compute.threads} threads)"
    )


def _figures() -> str:
    import vl_convert

    vl_convert.vegalite_to_svg({"mark": "point", "data": {"values": [{"x": 1}]}, "encoding": {"x": {"field": "x"}}})
    return f"vl-convert {version('vl-convert-python')} draws"
