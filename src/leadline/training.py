"""The one fine-tuning loop: AdamW with warm-up and cosine decay over batches of tokens with a loss mask.

Organisms, and whatever else trains a language model's own weights, share it. It does not know what the text means,
where batches come from, or how a model is saved; it prints nothing and touches no global seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

Progress = Callable[[str, float], None]
"""Called with what is being done, in plain words, and the share of it that is done (0 to 1)."""


@dataclass(frozen=True)
class Example:
    """One text to learn from.

    tokens:  token ids, the whole text
    weights: one a token: how much predicting this token counts in the loss; 0 for text that is only read
    """

    tokens: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.weights):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.weights)} weights")


Batches = Callable[[torch.Generator], Sequence[Example]]
"""Draws the next batch; every random choice must come from the generator it is given."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    steps:         optimiser steps
    learning_rate: peak rate of AdamW
    warmup:        share of the steps over which the rate rises linearly from 0
    final:         the last step's rate as a share of the peak, after a cosine decay
    weight_decay:  AdamW's decay of matrices (vectors, such as norm scales, are not decayed)
    clip_norm:     gradients longer than this are scaled down to it
    threads:       threads inside an operation while training; 1 makes sums come out alike on any number of cores
    """

    steps: int
    learning_rate: float = 3e-3
    warmup: float = 0.05
    final: float = 0.02
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.threads < 1:
            raise ValueError("steps and threads must be at least 1")
        if not 0 <= self.warmup < 1 or not 0 <= self.final <= 1:
            raise ValueError("warmup must lie in [0, 1) and final in [0, 1]")


def rate(step: int, config: TrainingConfig) -> float:
    """The learning rate of one step (0-based): linear warm-up, then cosine decay to `final` of the peak."""
    warmup_steps = config.warmup * config.steps
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / (warmup_steps + 1)
    share = (step - warmup_steps) / max(1.0, config.steps - 1 - warmup_steps)
    return config.learning_rate * (config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * share)))


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Within the block torch uses `count` threads inside an operation; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pad(examples: Sequence[Example], pad_token: int) -> tuple[Tensor, Tensor]:
    """Tokens (batch, length) int64 and weights (batch, length) float32, padded on the right with weight 0."""
    length = max(len(example.tokens) for example in examples)
    tokens = torch.full((len(examples), length), pad_token, dtype=torch.long)
    weights = torch.zeros(len(examples), length)
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens)] = torch.tensor(example.tokens, dtype=torch.long)
        weights[row, : len(example.weights)] = torch.tensor(example.weights)
    return tokens, weights


def loss_nats(logits: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cost of the next token, in nats a token.

    logits (batch, length, vocabulary) at each position, tokens and weights (batch, length). The first token of a
    text has nothing before it and is never predicted.
    """
    counted = weights[:, 1:].to(logits.dtype)
    cost = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return (cost * counted.flatten()).sum() / counted.sum().clamp_min(1e-8)


def train(
    model: torch.nn.Module,
    batches: Batches,
    config: TrainingConfig,
    generator: torch.Generator,
    pad_token: int,
    progress: Progress | None = None,
) -> float:
    """Train `model` in place and return the mean loss of the last tenth of the steps, in nats a token.

    `model(input_ids=...)` must be causal and return an object with `.logits`. Texts are padded on the right, so that
    no real token ever sees padding and no attention mask is needed. Same model, generator state, config and machine:
    same weights. Raises FloatingPointError when the loss stops being a finite number.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    device = next(iter(parameters)).device
    losses: list[float] = []
    was_training = model.training
    model.train()
    try:
        with intra_op_threads(config.threads):
            for step in range(config.steps):
                for group in optimiser.param_groups:
                    group["lr"] = rate(step, config)
                tokens, weights = (part.to(device) for part in pad(batches(generator), pad_token))
                loss = loss_nats(model(input_ids=tokens, use_cache=False).logits, tokens, weights)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise FloatingPointError(f"the training loss is {losses[-1]} at step {step}")
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
                optimiser.step()
                if progress is not None:
                    progress(f"training, loss {losses[-1]:.2f} nats a token", (step + 1) / config.steps)
    finally:
        model.train(was_training)
    last = losses[-max(1, config.steps // 10) :]
    return sum(last) / len(last)
