"""What `leadline list` lists is what there is."""

from __future__ import annotations

from typing import get_args

import pytest

from leadline.behaviour import builtin_names
from leadline.catalogue import LISTS
from leadline.organisms import ORGANISMS
from leadline.scorers import SCORERS
from leadline.spec import Family


def test_the_lists_name_what_exists():
    names = {what: [name for name, _ in rows()] for what, rows in LISTS.items()}
    assert names["behaviours"] == builtin_names()
    assert names["families"] == [*get_args(Family), "prefill", "best_of_n", "null"]
    assert names["organisms"] == [f"organism:{name}" for name in ORGANISMS]
    assert names["scorers"] == list(SCORERS)
    assert {"smollm2", *names["organisms"]} <= set(names["models"])


@pytest.mark.parametrize("what", LISTS)
def test_every_entry_has_a_sentence(what):
    for name, text in LISTS[what]():
        assert name.strip()
        assert len(text.split()) > 3
