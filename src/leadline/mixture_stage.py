"""The vocabulary mixture of a measurement: which text every restart of `vocab_mixture` stands around, and blind draws
from the whole mixture. All else happens to it as to every family of latents.

Every restart has two texts, what token searches on training items end with. One of them works by itself, if any was
found that does. The other need not: there a bit of loss weighs what it costs to take it away by moving embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leadline.interventions.text_prompt import Place
from leadline.interventions.vocab_mixture import FAMILY, VocabMixture, anchor_name, around
from leadline.places import places
from leadline.plan import Cell, restarts
from leadline.priors import generator, normal
from leadline.slot import Renderer
from leadline.text_stage import BETA, Curve, asked, climbed, text_prior
from leadline.texts import TextPrior
from leadline.work import Work

# Bits of loss that a bit of text is worth to the search: one of a restart's two texts is to be near the behaviour, and
# the other is to work (docs/decisions.md).
BETAS = (0.2, BETA)


def anchors(work: Work) -> None:
    """A text for every restart, for the behaviour at every size and for controls at the smallest."""
    if FAMILY not in work.spec.family:
        return
    prior, sizes = text_prior(work), work.spec.sizes_of(FAMILY)
    everywhere = places(Renderer(work.model, work.behaviour.slot), work.behaviour)
    for task in work.tasks:
        for size in sizes[:1] if task.name else sizes:
            for seed in range(restarts(work.spec, FAMILY)):
                cell = Cell(task.name, FAMILY, size, seed, None)
                work.place(cell, _component(work, cell, prior, everywhere))


def _component(work: Work, cell: Cell, prior: TextPrior, everywhere: Sequence[Place]) -> VocabMixture:
    """The component around the text that one restart's search finds."""
    restart, which = divmod(cell.seed, len(BETAS))
    key = work.anchor_key(cell)
    if not work.done(key):
        curve = Curve(cell.task, cell.size)
        pose, begun = asked(work, curve, restart, prior)
        found = climbed(work, curve, restart, everywhere, pose, begun, BETAS[which])
        # where nothing can be typed: the prior has all texts, whoever can type them
        best = found["best"] or list(prior.sample(1, cell.size, generator("anchor", cell.label))[0])
        bits = float(prior.surprisal_bits(torch.tensor([best])))
        string = work.model.tokenizer.decode(best, clean_up_tokenization_spaces=False)
        told = {"tokens": best, "bits": repr(bits), "string": string, "flops": found["flops"]}
        work.write(key, {"points": [], **told})
    record = work.run.cell(key) or {}
    told = {name: record[name] for name in ("tokens", "bits", "string")}
    work.extra.setdefault("anchors", {})[anchor_name(cell.task, cell.size, cell.seed)] = told
    return around(work.priors, record["tokens"], float(record["bits"]))


def mixture_draws(work: Work, size: int, count: int, *labels: object) -> Tensor:
    """(count, size, hidden) embeddings drawn from the whole mixture: a text first, then noise around it."""
    texts = text_prior(work).sample(count, size, generator(*labels, "texts"))
    whole = VocabMixture(size, work.priors.embedding)
    embeddings = work.model.embed(torch.tensor(texts).to(work.model.device))
    return whole.around(embeddings, normal((count, *whole.shape), *labels).to(work.model.device))
