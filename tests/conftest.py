"""What all tests share: the trained tiny model, made once into the cache and only read afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from leadline import organisms


@pytest.fixture(scope="session")
def tiny_model_folder() -> Path:
    """The checkpoint folder of `organism:tiny`; about a minute of training when the cache is empty."""
    return organisms.resolve("tiny")
