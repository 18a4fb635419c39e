"""What a timing is of: the code, the processor and how fast it multiplies."""

from __future__ import annotations

import platform
from typing import Any

import torch

from leadline import floor
from leadline.model import FrozenModel
from leadline.provenance import provenance
from leadline.spec import RunSpec

FIELDS = ("leadline", "commit", "dirty", "recipe", "python", "torch", "transformers", "dtype", "attention", "threads")


def machine(model: FrozenModel) -> dict[str, Any]:
    """As fields of a benchmark's record. products_a_second: floating point operations in products, in the model's
    dtype, which the floor is counted by"""
    told = provenance(RunSpec(), model)
    return {
        **{name: told[name] for name in FIELDS},
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "matrix_units": "amx" in _flags(), "products_a_second": floor.product_rate(model),
    }  # fmt: skip


def _flags() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return file.read()
    except OSError:  # not Linux
        return ""
