"""The residual stream behind every block at the last token of a prompt, with and without an edit.

It takes what the model computed and does not know what any of it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leadline.edits import Edit, WeightEdit
from leadline.engine import Context, Engine
from leadline.objective import CHUNK_ROWS


@torch.no_grad()
def last_token_streams(engine: Engine, contexts: Sequence[Context], change: Edit) -> list[Tensor]:
    """One (contexts, hidden) float32 tensor a block, in order: what it leaves at the last token before the reply.

    contexts: one a row, each with a target of at least one token;  change: as many rows
    """
    parts: list[list[Tensor]] = []
    for start in range(0, len(contexts), CHUNK_ROWS):
        rows = range(start, min(start + CHUNK_ROWS, len(contexts)))
        parts.append(_streams(engine, [contexts[row] for row in rows], change.select(rows)))
    return [torch.cat(blocks) for blocks in zip(*parts, strict=True)]


def _streams(engine: Engine, contexts: Sequence[Context], change: Edit) -> list[Tensor]:
    # the engine runs what every row starts with only once, unless other weights would make something else of it
    skipped = 0 if isinstance(change, WeightEdit) else len(engine.shared)
    last = [
        len(context.before) - skipped + inserted + len(context.after) - 1
        for context, inserted in zip(contexts, change.lengths, strict=True)
    ]
    places = torch.tensor(last, device=engine.model.device)
    kept: list[Tensor] = []

    def keep(hidden: Tensor) -> None:
        kept.append(hidden[torch.arange(len(places), device=hidden.device), places].float())

    def before(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        keep(inputs[0] if inputs else named["hidden_states"])

    def behind(_module: nn.Module, _inputs: Any, output: Any) -> None:
        keep(output if isinstance(output, Tensor) else output[0])

    # What enters the next block, not what leaves this one: an edit of the stream is added behind this one, by a hook
    # that comes after ours. No edit is added behind the last.
    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in engine.model.layers[1:]]
    handles.append(engine.model.layers[-1].register_forward_hook(behind))
    try:
        engine.target_logits(contexts, change)
    finally:
        for handle in handles:
            handle.remove()
    return kept
