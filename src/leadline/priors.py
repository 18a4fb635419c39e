"""What latents are drawn from before anything is known of the behaviour, and what they mean as embeddings.

Every family here works in whitened coordinates: its latent z has the prior N(0, I), and the map to embeddings carries
the scale. KL, log ratios and draws are then the same few lines for all of them (`information`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from leadline.behaviour import questions
from leadline.model import FrozenModel
from leadline.spec import UserError

NATURAL_TEXTS = 64  # questions of the pool that natural activations are taken from
LEADING = 2  # singular triplets of each linear map that are kept
RELATIVE_NORM = 0.1  # of a change of weights: norm(dW) / norm(W) of a draw from the prior


@dataclass(frozen=True)
class EmbeddingPrior:
    """embedding = mean + scale * u, u ~ N(0, I), per dimension of the vocabulary's embeddings as the first block sees
    them (docs/measurement.md section 3).

    mean, scale: (hidden,) float32
    """

    mean: Tensor
    scale: Tensor
    name: str = "N(mu, sigma^2) of the vocabulary, per dimension"

    def embeddings(self, whitened: Tensor) -> Tensor:
        """(..., hidden) whitened coordinates to (..., hidden) embeddings."""
        return self.mean + self.scale * whitened


@dataclass(frozen=True)
class Natural:
    """What blocks do on ordinary text: mean and standard deviation, dimension by dimension, float32.

    residual:      (blocks, hidden) standard deviation of what leaves each block
    keys, values:  (2, blocks, heads, head size) mean and standard deviation, keys as attention sees them
    """

    residual: Tensor
    keys: Tensor
    values: Tensor


class Priors:
    """The priors of one model, each worked out when it is first asked for, none of them from the behaviour."""

    def __init__(self, model: FrozenModel) -> None:
        self.model = model

    @cached_property
    def embedding(self) -> EmbeddingPrior:
        """The prior of the vocabulary."""
        return EmbeddingPrior(*self.model.embedding_statistics())

    @cached_property
    def natural(self) -> Natural:
        """Over the first NATURAL_TEXTS questions of the pool as plain text, each token but the first of each: the first
        position of a text is a sink of attention in most models, and its activations are like no other's."""
        residual: list[list[Tensor]] = [[] for _ in self.model.layers]
        keys, values = [], []

        def keep(number: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                hidden = output if isinstance(output, Tensor) else output[0]
                residual[number].append(hidden[0, 1:].float())

            return hook

        handles = [layer.register_forward_hook(keep(number)) for number, layer in enumerate(self.model.layers)]
        try:
            with torch.no_grad():
                for text in questions()[:NATURAL_TEXTS]:
                    tokens = self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
                    ids = torch.tensor([[self.model.start_token, *tokens]], device=self.model.device)
                    past = DynamicCache()  # of whole texts: a model's own one may keep only its last tokens
                    self.model.network(input_ids=ids, past_key_values=past, use_cache=True)
                    layers: list[Any] = list(past.layers)
                    keys.append(torch.stack([layer.keys[0, :, 1:] for layer in layers]).float())
                    values.append(torch.stack([layer.values[0, :, 1:] for layer in layers]).float())
        finally:
            for handle in handles:
                handle.remove()
        spread = torch.stack([torch.cat(parts).std(0, correction=0) for parts in residual])
        return Natural(spread, _moments(keys), _moments(values))

    @cached_property
    def linear(self) -> dict[str, Tensor]:
        """The weights of every linear map within the blocks, by module name, each as (outputs, inputs). UserError where
        they are quantized: a change of them has no size then."""
        if self.model.quantized:
            how = "Leave lora and tinylora out, or load the model unquantized."
            raise UserError("Quantized weights have no norm to measure a change by", self.model.name, how)
        inside = {id(module) for layer in self.model.layers for module in layer.modules()}
        found = {}
        for name, module in self.model.network.named_modules():
            if id(module) in inside and isinstance(module, nn.Linear):
                found[name] = module.weight
            elif id(module) in inside and type(module).__name__ == "Conv1D":  # of transformers: a transposed Linear
                found[name] = module.weight.T
        return found

    @cached_property
    def leading(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """The LEADING singular triplets of each of `linear`, on the processor: (out, rank), (rank,), (rank, in)."""
        return {
            name: _triplets(weight.float().cpu(), min(LEADING, *weight.shape)) for name, weight in self.linear.items()
        }


def _triplets(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triplets: (out, rank), (rank,), (rank, in); from the eigenvectors of W W^T or W^T W,
    whichever is smaller, which is a tenth of the work of a decomposition of W and exact enough for the leading ones."""
    if matrix.shape[0] > matrix.shape[1]:
        right, values, left = _triplets(matrix.T, rank)
        return left.T, values, right.T
    squares, vectors = torch.linalg.eigh(matrix.double() @ matrix.double().T)
    left, values = vectors[:, -rank:].flip(1).float(), squares[-rank:].flip(0).clamp_min(0.0).sqrt().float()
    return left, values, (left.T @ matrix) / values.clamp_min(1e-30)[:, None]


def _moments(parts: list[Tensor]) -> Tensor:
    """(2, blocks, heads, size) mean and standard deviation over the tokens of (blocks, heads, tokens, size) parts."""
    whole = torch.cat(parts, dim=2)
    return torch.stack([whole.mean(2), whole.std(2, correction=0)])


def normal(shape: tuple[int, ...], *labels: object) -> Tensor:
    """Standard normal float32 numbers that depend on the labels and on nothing else: no state, so that a resumed run
    draws what the uninterrupted one would have drawn."""
    return torch.randn(shape, generator=generator(*labels))


def generator(*labels: object) -> torch.Generator:
    """A CPU generator seeded by a hash of the labels."""
    return torch.Generator().manual_seed(seed_of(*labels))


def seed_of(*labels: object) -> int:
    """A 63-bit seed from labels, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(labels).encode()).digest()[:8], "big") >> 1
