"""Which of all families this behaviour and this model can carry: where every family was asked for, one that cannot be
measured here is left out with its reason instead of refusing the run.

Knows only what can be told before the model has written anything: a reply that turns out longer than that may still
refuse the run (`items.prepare`). Families that were named one by one are never left out.
"""

from __future__ import annotations

from leadline.behaviour import Behaviour
from leadline.items import sample_contexts
from leadline.model import FrozenModel
from leadline.places import made
from leadline.plan import latent_families
from leadline.priors import Priors
from leadline.spec import RunSpec, UserError


def carried(model: FrozenModel, behaviour: Behaviour, spec: RunSpec, priors: Priors) -> tuple[RunSpec, dict[str, str]]:
    """The spec with the families that can be measured, and the reason of each that cannot. Raises UserError where none
    can, and where a family that was asked for by its name cannot."""

    def check(some: RunSpec) -> None:
        sample_contexts(model, behaviour, some, 1)
        for family in latent_families(some):
            for size in some.sizes_of(family):
                made(family, size, priors, behaviour)

    if not spec.every_family:
        check(spec)
        return spec, {}
    left_out: dict[str, UserError] = {}
    try:
        check(spec)
    except UserError:  # of whichever family; each by itself tells which
        for family in spec.family:
            try:
                check(spec.model_copy(update={"family": (family,)}))
            except UserError as error:
                left_out[family] = error
    if len(left_out) == len(spec.family):
        raise left_out[spec.family[0]]
    kept = tuple(family for family in spec.family if family not in left_out)
    return spec.model_copy(update={"family": kept}), {family: error.what for family, error in left_out.items()}


def left_out_lines(left_out: dict[str, str]) -> list[str]:
    """A line for each family that is left out."""
    return [f"{family} is not measured: {reason}" for family, reason in left_out.items()]
