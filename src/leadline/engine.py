"""The one forward path: apply a batch of edits to contexts at their slot, return logits only at target positions.

Rows are padded on the right. Under a causal mask no real token can see what stands to its right, so padding needs no
mask and positions count up by themselves; that holds for every architecture with causal attention, learned or rotary
positions alike. Every kind of edit is carried out here and nowhere else. The engine knows nothing of behaviours,
objectives, priors or solvers.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from leadline.edits import Edit, EmbeddingEdit, KeyValueEdit, ResidualEdit, WeightEdit
from leadline.model import FrozenModel
from leadline.spec import UserError
from leadline.training import intra_op_threads


@dataclass(frozen=True)
class Context:
    """One row of tokens around the slot: `before` + (slot) + `after` + `target`. The target ends with its end token,
    if the behaviour says that the reply ends. `conditions` are no part of the text: interventions may read them."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]
    conditions: tuple[float, ...] = ()


@dataclass(frozen=True)
class TargetLogits:
    """What the forward pass returns: one line a target token, all rows one after the other.

    logits:  (targets, vocabulary), in the model's dtype
    targets: (targets,) the token that should come next
    rows:    (targets,) the row of the batch each line belongs to
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor
    num_rows: int

    def nats(self, temperature: float = 1.0) -> Tensor:
        """(rows,) cost of each row's whole target in nats: the sum of -log p over its tokens, p at that temperature."""
        logits = self.logits.float() / temperature
        surprisal = torch.nn.functional.cross_entropy(logits, self.targets, reduction="none")
        return torch.zeros(self.num_rows, device=surprisal.device).index_add(0, self.rows, surprisal)

    def margins(self) -> Tensor:
        """(rows,) smallest margin of a row's target tokens over their best rival: greedy decoding writes the target
        exactly if and only if it is positive (docs/measurement.md section 2, level function)."""
        lowest = torch.full((self.num_rows,), float("inf"), device=self.leads.device)
        return lowest.scatter_reduce(0, self.rows, self.leads, "amin")

    @cached_property
    def leads(self) -> Tensor:
        """(targets,) the logit of each target token less that of its best rival."""
        wanted = self.logits.gather(1, self.targets[:, None])[:, 0]
        rivals = self.logits.scatter(1, self.targets[:, None], float("-inf")).amax(1)
        return wanted.float() - rivals.float()  # which number is largest, any precision knows


class _Now(threading.local):
    """What the rows that this thread runs are given by the hooks that are in place.

    picks: (picks,) positions of the flattened batch that go through the head; None for all
    edit:  carried out by the hooks;  first: (rows, 1) position from which on a residual edit changes a row
    """

    picks: Tensor | None = None
    edit: Edit | None = None
    first: Tensor | None = None


class Engine:
    """Runs contexts under edits through one frozen model.

    Threads may run rows side by side: `with engine.carrying(edit)` in one thread, `engine.logits` of its own in each.

    shared: tokens that every row starts with. They are run once and their keys and values are kept; the slow twin is
            `shared=()`, and a test holds the two together.
    """

    def __init__(self, model: FrozenModel, shared: tuple[int, ...] = ()) -> None:
        self.model = model
        self.shared = shared
        self._now = _Now()
        self._cache: Any = None
        if shared:
            ids = torch.tensor([shared], device=model.device)
            with torch.no_grad():
                self._cache = model.network(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def target_logits(self, contexts: Sequence[Context], edit: Edit) -> TargetLogits:
        """Logits at the target positions of every row, differentiable in the edit's tensors.

        contexts: one a row; edit: as many rows. Raises ValueError where a context does not start with `shared`.
        """
        with self.carrying(edit):
            return self.logits(contexts, edit)

    def logits(self, contexts: Sequence[Context], edit: Edit) -> TargetLogits:
        """As `target_logits`, of rows of the edit that is carried."""
        # The last target token is never an input: nothing after it is scored.
        embeds, starts, slots = self._assemble(contexts, edit, [context.target[:-1] for context in contexts])
        width = embeds.shape[1]
        picks: list[int] = []
        rows: list[int] = []
        targets: list[int] = []
        for row, (context, start) in enumerate(zip(contexts, starts, strict=True)):
            picks += [row * width + start - 1 + step for step in range(len(context.target))]
            rows += [row] * len(context.target)
            targets += context.target
        device = self.model.device
        logits = self._run(embeds, torch.tensor(picks, device=device), edit, slots, keep=False)[0]
        return TargetLogits(
            logits, torch.tensor(targets, device=device), torch.tensor(rows, device=device), len(contexts)
        )

    @torch.no_grad()
    def generate(self, contexts: Sequence[Context], edit: Edit, max_tokens: int) -> list[tuple[int, ...]]:
        """Greedy replies, each up to and with its end token, `max_tokens` or the end of the model's window; the
        contexts' targets are ignored."""
        return self._decode(contexts, edit, max_tokens, None)

    @torch.no_grad()
    def sample(
        self, contexts: Sequence[Context], edit: Edit, max_tokens: int, generator: torch.Generator
    ) -> list[tuple[int, ...]]:
        """Replies drawn from the model at temperature 1; otherwise as `generate`."""
        return self._decode(contexts, edit, max_tokens, generator)

    def _decode(
        self, contexts: Sequence[Context], edit: Edit, max_tokens: int, generator: torch.Generator | None
    ) -> list[tuple[int, ...]]:
        """Rows of one length at a time: padding between a prompt and its reply would have to be masked, and a window
        of attention or a bias by distance would count it all the same."""
        places: dict[int, list[int]] = {}
        for row, (context, inserted) in enumerate(zip(contexts, edit.lengths, strict=True)):
            places.setdefault(len(context.before) + inserted + len(context.after), []).append(row)
        replies: list[tuple[int, ...]] = [()] * len(contexts)
        for length, alike in places.items():
            room = min(max_tokens, self.model.window - length - edit.taken)
            found = self._decode_alike([contexts[row] for row in alike], edit.select(alike), room, generator)
            for row, reply in zip(alike, found, strict=True):
                replies[row] = reply
        return replies

    def _decode_alike(
        self, contexts: Sequence[Context], edit: Edit, max_tokens: int, generator: torch.Generator | None
    ) -> list[tuple[int, ...]]:
        rows = len(contexts)
        embeds, ends, slots = self._assemble(contexts, edit, [()] * rows)
        picks = torch.arange(1, rows + 1, device=self.model.device) * ends[0] - 1
        replies: list[list[int]] = [[] for _ in range(rows)]
        running = [True] * rows
        with intra_op_threads(self.model.threads_of_one_pass), self.carrying(edit):
            logits, past = self._run(embeds, picks, edit, slots, keep=True)
            # each token of a reply stands behind the slot, and is the only one of its pass
            self._now.picks, self._now.first = None, torch.zeros(rows, 1, dtype=torch.long, device=picks.device)
            for _ in range(max_tokens):
                tokens = _choose(logits, generator)
                for row, token in enumerate(tokens.tolist()):
                    if running[row]:
                        replies[row].append(token)
                        running[row] = token not in self.model.end_tokens
                if not any(running):
                    break
                output = self.model.network(input_ids=tokens[:, None], past_key_values=past, use_cache=True)
                logits = output.logits[:, -1]
        return [tuple(reply) for reply in replies]

    def _assemble(
        self, contexts: Sequence[Context], edit: Edit, tails: Sequence[tuple[int, ...]]
    ) -> tuple[Tensor, list[int], list[int]]:
        """(rows, width, hidden) embeddings of what follows the kept prefix, where each row's tail starts, and its slot:
        the first position an edit changes, the last one of the prompt at the latest."""
        if len(contexts) != len(edit.lengths):
            raise ValueError(f"{len(contexts)} contexts under an edit of {len(edit.lengths)} rows")
        skip, lines, starts, slots = self.skipped(edit), [], [], []
        where_row: list[int] = []
        where_column: list[int] = []
        where_token: list[int] = []
        for row, (context, tail, length) in enumerate(zip(contexts, tails, edit.lengths, strict=True)):
            if context.before[: len(self.shared)] != self.shared:
                raise ValueError(f"row {row} does not start with the shared prefix of {len(self.shared)} tokens")
            before = context.before[skip:]
            lines.append([*before, *([0] * length), *context.after, *tail])
            starts.append(len(before) + length + len(context.after))
            slots.append(min(len(before), starts[-1] - 1))
            where_row += [row] * length
            where_column += range(len(before), len(before) + length)
            where_token += range(length)
        width = max(len(line) for line in lines)
        device = self.model.device
        embeds = self.model.embed(torch.tensor([line + [0] * (width - len(line)) for line in lines], device=device))
        if where_row and isinstance(edit, EmbeddingEdit):
            row_index = torch.tensor(where_row, device=device)
            values = edit.values[row_index, torch.tensor(where_token, device=device)].to(embeds.dtype)
            embeds = embeds.index_put((row_index, torch.tensor(where_column, device=device)), values)
        return embeds, starts, slots

    def skipped(self, edit: Edit) -> int:
        """Tokens that every row starts with and that need not be run."""
        return 0 if self._kept(edit) is None else len(self.shared)

    def _kept(self, edit: Edit) -> Any:
        """The cache of the shared prefix; None without one, and where other weights would have made another."""
        return None if isinstance(edit, WeightEdit) else self._cache

    def _past(self, edit: Edit) -> Any:
        """A cache for every row of the batch, with the keys and values of the edit behind the shared prefix."""
        rows, kept = len(edit.lengths), self._kept(edit)
        past = None
        if kept is not None:
            # Caches are changed in place: a reused one would silently lengthen the context.
            past = copy.deepcopy(kept)
            past.batch_repeat_interleave(rows)
        if isinstance(edit, KeyValueEdit):
            past = past if past is not None else DynamicCache(config=self.model.network.config)
            dtype = self.model.network.dtype
            for block in range(edit.keys.shape[1]):
                past.update(edit.keys[:, block].to(dtype), edit.values[:, block].to(dtype), block)
        return past

    @contextmanager
    def carrying(self, edit: Edit) -> Iterator[None]:
        """Puts hooks in place that narrow what reaches the head and carry out an edit of what blocks or linear maps
        give, until it ends. They are placed and removed by one thread, since others may be running the modules, and
        read what each thread is at."""
        network = self.model.network
        handles = [self.model.head.register_forward_pre_hook(self._narrow)]
        if isinstance(edit, ResidualEdit):
            for place, site in enumerate(edit.sites):
                handles.append(self.model.layers[site].register_forward_hook(partial(self._add, place)))
        if isinstance(edit, WeightEdit):
            for name in edit.down:
                handles.append(network.get_submodule(name).register_forward_hook(partial(self._change, name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _narrow(self, _module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        """Only the picked positions go through the head: whatever a model does after its head still happens."""
        if self._now.picks is None:
            return None
        hidden = inputs[0]
        # One contiguous matrix: a strided slice makes torch copy the whole head once a row.
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._now.picks)[None],)

    def _add(self, place: int, _module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        """Adds the vectors of one site to a block's output, at every position from the slot on."""
        edit, first = self._now.edit, self._now.first
        assert isinstance(edit, ResidualEdit)
        assert first is not None
        hidden = output if isinstance(output, Tensor) else output[0]
        behind = torch.arange(hidden.shape[1], device=hidden.device) >= first
        changed = hidden + behind[..., None] * edit.values[:, place, None].to(hidden.dtype)
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    def _change(self, name: str, _module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Adds up (down x) to what a linear map gives for x."""
        edit, x = self._now.edit, inputs[0]
        assert isinstance(edit, WeightEdit)
        down, up = (factor.to(x.dtype).transpose(1, 2) for factor in (edit.down[name], edit.up[name]))
        return output + (x @ down) @ up

    def _run(self, embeds: Tensor, picks: Tensor, edit: Edit, slots: Sequence[int], keep: bool) -> tuple[Tensor, Any]:
        """(picks, vocabulary) logits of the picked positions of the flattened batch, and the cache if it is kept.

        slots: the first position of each row that a residual edit changes
        """
        first = torch.tensor(slots, device=self.model.device)[:, None]
        self._now.picks, self._now.edit, self._now.first = picks, edit, first
        past = self._past(edit)
        output = self.model.network(inputs_embeds=embeds, past_key_values=past, use_cache=keep or past is not None)
        return output.logits[0], output.past_key_values if keep else None


def shared_prefix(contexts: Sequence[Context]) -> tuple[int, ...]:
    """The longest run of tokens that all contexts start with and that ends before every slot."""
    if not contexts:
        return ()
    shortest = min((context.before for context in contexts), key=len)
    for count, token in enumerate(shortest):
        if any(context.before[count] != token for context in contexts):
            return shortest[:count]
    # A row of no tokens is no forward pass: leave one where nothing may follow but the slot and the reply.
    empty = any(len(context.before) == len(shortest) and not context.after for context in contexts)
    return shortest[:-1] if empty else shortest


def _choose(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return logits.argmax(-1)
    chances = logits.float().softmax(-1)
    if not bool(torch.isfinite(chances).all()):
        how = "Give a behaviour with replies of its own, or another model."
        raise UserError("The model's own replies cannot be drawn: its logits are not finite", "model", how)
    # A generator draws only on its own device, and one on the CPU draws the same whatever device the model is on.
    return torch.multinomial(chances.to(generator.device), 1, generator=generator)[:, 0].to(logits.device)
