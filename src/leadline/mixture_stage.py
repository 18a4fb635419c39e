"""The vocabulary mixture of a measurement: which text every restart of `vocab_mixture` stands around, and blind draws
from the whole mixture. All else happens to it as to every family of latents.

A restart's text is the one that the token search of `text_prompt` with the same seed ends with: the cheapest that works
on training items by itself, or the nearest to one where none was found.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leadline.interventions.text_prompt import Place
from leadline.interventions.vocab_mixture import FAMILY, VocabMixture, anchor_name, around
from leadline.places import places
from leadline.plan import Cell
from leadline.priors import generator, normal
from leadline.slot import Renderer
from leadline.text_stage import BETA, Curve, asked, climbed, text_prior
from leadline.texts import TextPrior
from leadline.work import Work


def anchors(work: Work) -> None:
    """A text for every restart, for the behaviour at every size and for controls at the smallest."""
    if FAMILY not in work.spec.family:
        return
    prior, sizes = text_prior(work), work.spec.sizes_of(FAMILY)
    everywhere = places(Renderer(work.model, work.behaviour.slot), work.behaviour)
    for task in work.tasks:
        for size in sizes[:1] if task.name else sizes:
            for seed in range(work.spec.seeds):
                cell = Cell(task.name, FAMILY, size, seed, None)
                work.place(cell, _component(work, cell, prior, everywhere))


def _component(work: Work, cell: Cell, prior: TextPrior, everywhere: Sequence[Place]) -> VocabMixture:
    """The component around the text that one restart's search finds."""
    key = work.anchor_key(cell)
    if not work.done(key):
        curve = Curve(cell.task, cell.size)
        pose, begun = asked(work, curve, cell.seed, prior)
        found = climbed(work, curve, cell.seed, everywhere, pose, begun, BETA)
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
