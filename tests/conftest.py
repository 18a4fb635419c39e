"""What all tests share: the trained tiny model, made once into the cache and only read afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from leadline import organisms


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """One for a test, since others run beside it; no test leaves its choice to the next one."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model_folder() -> Path:
    """The checkpoint folder of `organism:tiny`; about a minute of training when the cache is empty."""
    return organisms.resolve("tiny")
