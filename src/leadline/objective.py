"""What is asked of a batch of edited rows: the cost of their targets in bits, and their margins.

The only place where contexts, the engine and scores meet. Knows nothing of priors, solvers or bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from leadline import parts
from leadline.edits import Edit
from leadline.engine import Context, Engine, TargetLogits

# Rows that are run at once without gradients: enough to fill the processor, small enough for a laptop.
CHUNK_ROWS = 48
# Margins nearer to zero than this are computed again in float32. Of a bfloat16 model they are off by 0.11 to 0.15
# (standard deviation, SmolLM2; 0.39 at most of 240), and those that changed sign were 0.25 at most.
TIE_LOGITS = 0.5


class Objective:
    """Costs and margins of the targets, through one engine.

    engine:   the forward path;  exact: makes the same engine in float32, for near ties of a low-precision model
    rewarded: (rows,) margins of what is replied, where no reply is the target; such rows cost 0 bits
    """

    def __init__(
        self, engine: Engine, exact: Callable[[], Engine] | None = None,
        rewarded: Callable[[Sequence[Context], Edit], Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.engine = engine
        self._rewarded = rewarded
        self._make_exact = exact
        self._exact: Engine | None = None
        self.ties = 0

    def bits(self, contexts: Sequence[Context], edit: Edit) -> Tensor:
        """(rows,) cost of each row's target in bits, end of reply included; differentiable once."""
        return parts.nats(self.engine, contexts, edit) / math.log(2)

    @torch.no_grad()
    def evaluate(self, contexts: Sequence[Context], edit: Edit) -> tuple[Tensor, Tensor]:
        """(rows,) bits and (rows,) margins, without gradients, in chunks; near ties are scored again in float32."""
        if self._rewarded is not None:
            return torch.zeros(len(contexts), device=self.engine.model.device), self._rewarded(contexts, edit)
        bits, margins = [], []
        for start in range(0, len(contexts), CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, len(contexts))
            part, change = contexts[start:stop], edit.select(range(start, stop))
            nats, found = parts.each(self.engine, part, change, _costs_and_margins).T
            bits.append(nats / math.log(2))
            margins.append(self._settled(part, change, found.clone()))
        return torch.cat(bits), torch.cat(margins)

    def _settled(self, contexts: Sequence[Context], edit: Edit, margins: Tensor) -> Tensor:
        close = (margins.abs() < TIE_LOGITS).nonzero()[:, 0].tolist()
        if not close or self._make_exact is None:
            return margins
        self._exact = self._exact or self._make_exact()
        asked, change = [contexts[row] for row in close], edit.select(close)
        margins[close] = parts.each(self._exact, asked, change, TargetLogits.margins)
        self.ties += len(close)
        return margins


def _costs_and_margins(logits: TargetLogits) -> Tensor:
    """(rows, 2) nats and margins."""
    return torch.stack([logits.nats(), logits.margins()], 1)


def objective_for(engine: Engine) -> Objective:
    """The objective of an engine; a low-precision model gets its float32 twin, loaded when the first tie needs it."""
    model = engine.model
    if model.compute.dtype == "float32" or model.quantized:
        return Objective(engine)
    return Objective(engine, lambda: Engine(model.exact("near ties are scored again in float32"), engine.shared))
