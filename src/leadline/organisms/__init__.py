"""Models with a planted truth, made on the spot from a seed and kept in a cache: `resolve(name)` gives a folder.

Knows the names of the organisms and nothing else; what is planted is written in each organism's own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from leadline.organisms.base import Organism, stored
from leadline.organisms.tiny import trained, untrained
from leadline.spec import UserError
from leadline.training import Progress

__all__ = ["ORGANISMS", "Organism", "resolve"]

ORGANISMS: Mapping[str, Callable[[int], Organism]] = {"tiny": trained, "random": untrained}
"""Each name with what makes the organism of a seed."""


def resolve(name: str, seed: int = 0, progress: Progress | None = None, cache: Path | None = None) -> Path:
    """The checkpoint folder of an organism, built now if the cache does not hold it yet.

    name:     a key of ORGANISMS, without "organism:"
    seed:     of the weights and of the training data; 0 is the one that the tests and the documents speak of
    progress: told what is being done and the share that is done; a build of `tiny` takes about a minute
    cache:    the cache to use instead of `leadline.cache.cache_folder()`

    Raises UserError for an unknown name and for a cache that cannot be written.
    """
    if name not in ORGANISMS:
        known = ", ".join(f"organism:{known}" for known in ORGANISMS)
        raise UserError(f"There is no organism {name!r}", "model", f"Use one of {known}.")
    return stored(ORGANISMS[name](seed), progress, cache)
