"""Where leadline keeps what it can make again (weights, trained organisms, probes), and how a folder appears whole.

Knows nothing of what is stored.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """`$LEADLINE_CACHE`, else `$XDG_CACHE_HOME/leadline`, else `~/.cache/leadline`."""
    if named := os.environ.get("LEADLINE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leadline"


def whole_folder(path: Path, build: Callable[[Path], None]) -> Path:
    """`path`, built by `build(temporary folder)` if it is not there yet. It appears whole or not at all; of two
    processes that build it at once, the first to finish wins and both return the same folder."""
    if path.is_dir():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        build(temporary)
        temporary.chmod(0o755)  # mkdtemp makes it private, a cache may be shared
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def whole_file(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that readers see all of it or none of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
