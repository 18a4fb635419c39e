"""Nearest tokens and changes of the residual stream, on vectors whose angles and lengths are known."""

from __future__ import annotations

import math

import pytest
import torch

from leadline.nearest import NEAREST_TOKENS_WARNING, nearest_tokens, stream_changes


def test_nearest_tokens_are_nearest_by_distance_and_their_angles_are_right():
    table = torch.tensor([[1.0, 0.0], [0.0, 2.0], [10.0, 10.0], [-1.0, 0.0]])
    indices, cosines, distances = nearest_tokens(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), table, 3)
    # by angle the third would be nearest to the first
    assert indices[0, 0] == 0
    assert sorted(indices[0, :2].tolist()) == [0, 1]
    assert indices[1].tolist()[0] == 1
    assert float(cosines[0, 0]) == pytest.approx(math.sqrt(0.5))
    assert float(distances[0, 0]) == 1
    assert (float(cosines[1, 0]), float(distances[1, 0])) == (1, 0)
    assert torch.equal(distances, distances.sort(-1).values)


def test_a_table_row_is_its_own_nearest_token_in_a_large_table():
    table = 3 + torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    indices, cosines, distances = nearest_tokens(table[100:140] + 1e-4, table, 1)
    assert indices[:, 0].tolist() == list(range(100, 140))
    torch.testing.assert_close(distances, torch.full((40, 1), 8e-4), rtol=1e-2, atol=0)
    assert float(cosines.min()) > 0.999


def test_more_tokens_than_there_are_gives_all():
    assert nearest_tokens(torch.zeros(2, 3), torch.eye(3), 9)[0].shape == (2, 3)


def test_the_warning_cites_its_source():
    assert "2112.08348" in NEAREST_TOKENS_WARNING


def test_changes_of_the_stream_by_hand():
    before = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    turned, doubled, flipped = torch.tensor([[0.0, 3.0], [4.0, 0.0]]), 2 * before, -before
    found = stream_changes([before] * 4, [before, turned, doubled, flipped])
    assert [one.relative_norm for one in found] == pytest.approx([0, math.sqrt(2), 1, 2])
    assert [one.cosine for one in found] == pytest.approx([1, 0, 1, -1])


def test_a_stream_of_zeros_that_stays_has_not_changed_and_one_that_moves_has_no_measure():
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    still, moved = stream_changes([zero, zero], [zero, one])
    assert (still.relative_norm, still.cosine) == (0, 0)
    assert moved.relative_norm == math.inf


def test_lists_and_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="layer 1"):
        stream_changes([torch.ones(2, 3), torch.ones(2, 3)], [torch.ones(2, 3), torch.ones(1, 3)])
    with pytest.raises(ValueError, match="zip"):
        stream_changes([torch.ones(2, 3)], [])
