"""Where leadline keeps what it can make again (weights, trained organisms, probes), and how files and folders appear
whole: under a temporary name first, then renamed, folders with the hashes of their files.

Knows nothing of what is stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SEAL = "sha256.json"
PARTIAL = ".partial"
ABANDONED_SECONDS = 24 * 3600.0
"""A half-built folder older than this belongs to a build that was killed, and is swept away by the next one."""


def cache_folder() -> Path:
    """`$LEADLINE_CACHE`, else `$XDG_CACHE_HOME/leadline`, else `~/.cache/leadline`."""
    if own := os.environ.get("LEADLINE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "leadline"


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whole_folder(path: Path, build: Callable[[Path], None]) -> Path:
    """`path`, built by `build(temporary folder)` if it is not there yet, with the hash of each file beside them.

    It appears whole or not at all; of two processes that build it at once, the first to finish wins and both return
    the same folder. Raises what `build` raises, and OSError when it cannot be written.
    """
    if path.is_dir():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    return new_folder(path, build)


def new_folder(path: Path, build: Callable[[Path], None]) -> Path:
    """As `whole_folder`, for a path that is not there, or is an empty folder, in a place that is not leadline's own:
    nothing beside it is swept away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-", suffix=PARTIAL))
    try:
        build(temporary)
        hashes = {file.name: file_sha256(file) for file in sorted(temporary.iterdir()) if file.is_file()}
        (temporary / SEAL).write_text(json.dumps(hashes, indent=1))
        temporary.chmod(0o755)  # mkdtemp lets the owner alone in; a shared cache is for everyone
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():  # not another build that was faster, but a true failure
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def damaged_file(folder: Path) -> Path | None:
    """The first file of a whole folder that is no longer what was built, or None."""
    try:
        hashes: dict[str, str] = json.loads((folder / SEAL).read_bytes())
        for name, wanted in hashes.items():
            if file_sha256(folder / name) != wanted:
                return folder / name
    except FileNotFoundError as error:
        return Path(str(error.filename))
    except (ValueError, AttributeError):
        return folder / SEAL
    return None


def whole_file(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that readers see all of it or none of it.

    Raises OSError that names `path`.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=PARTIAL)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).rename(path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):  # a failed write does not say which file, a failed rename says the other name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _sweep(shelf: Path) -> None:
    for partial in shelf.glob(f".*{PARTIAL}"):
        with suppress(FileNotFoundError):  # its own build may finish at this moment
            if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)
