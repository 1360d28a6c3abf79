"""Units are matched with the units they are, and with none where none is sure."""

from __future__ import annotations

import numpy as np
import pytest

from qvec_deploy.vectors.matching import Units, assign, match_channels, match_heads, match_neurons, similarity
from qvec_deploy.vectors.undo import TensorChange


def _units(size: int, seed: int) -> Units:
    generator = np.random.default_rng(seed)
    left, right = (generator.standard_normal((size, 16)).astype(np.float32) for _ in range(2))
    return Units(left, right, np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))


def _moved(units: Units, order: np.ndarray, factors: np.ndarray) -> Units:
    """What a receiver looks like whose unit `order[i]` is the donor's unit i, scaled by its factor."""
    parts = []
    for values, power in ((units.left, factors), (units.right, 1 / factors)):
        moved = np.empty_like(values)
        moved[order] = values * power[:, None]
        parts.append(moved)
    norms = [np.linalg.norm(part, axis=1) for part in parts]
    return Units(parts[0], parts[1], norms[0], norms[1])


@pytest.mark.parametrize("size", [1, 2, 50, 400])
def test_permuted_neurons(size: int) -> None:
    donor, order = _units(size, 0), np.random.default_rng(1).permutation(size)
    match = match_neurons(donor, _moved(donor, order, np.ones(size, np.float32)))
    np.testing.assert_array_equal(match.order, order)
    assert (match.moved, match.flipped, match.scaled) == (int((order != np.arange(size)).sum()), 0, 0)


def test_flipped_neurons_are_not_explained() -> None:
    donor = _units(50, 0)
    match = match_neurons(donor, _moved(donor, np.arange(50), np.full(50, -1, np.float32)))
    assert (match.moved, match.flipped) == (0, 0)


def test_strangers_are_left_where_they_are() -> None:
    np.testing.assert_array_equal(assign(similarity(_units(300, 0), _units(300, 1))), np.arange(300))


def test_an_assignment_is_a_permutation_whatever_the_scores() -> None:
    generator = np.random.default_rng(0)
    for size in range(1, 40):
        score = generator.uniform(-1, 1, (size, size)).astype(np.float32)
        score[:, 0] = 0.95  # all want the same unit
        np.testing.assert_array_equal(np.sort(assign(score)), np.arange(size))


def test_twins_do_not_displace_the_rest() -> None:
    donor = _units(20, 0)
    for half in (donor.left, donor.right):
        half[3] = half[7]
    order = np.random.default_rng(2).permutation(20)
    receiver = _moved(donor, order, np.ones(20, np.float32))
    match = match_neurons(donor, receiver)
    np.testing.assert_array_equal(receiver.left[match.order], donor.left)


def test_channels_of_permuted_heads_with_signs_and_scales() -> None:
    generator = np.random.default_rng(3)
    donor, heads = _units(48, 0), np.array([2, 0, 1])
    inside = np.concatenate([head * 16 + generator.permutation(16) for head in heads])
    factors = (generator.choice([-1, 1], 48) * generator.choice([0.25, 1, 3], 48)).astype(np.float32)
    receiver = _moved(donor, inside, factors)
    found = match_heads([np.abs(similarity(donor, receiver))] * 2, 3)
    np.testing.assert_array_equal(found, heads)
    match = match_channels(donor, receiver, found)
    np.testing.assert_array_equal(match.order, inside)
    np.testing.assert_allclose(match.left, 1 / factors, rtol=1e-5)
    np.testing.assert_allclose(match.right, factors, rtol=1e-5)
    assert (match.flipped, match.scaled) == (int((factors < 0).sum()), int((np.abs(factors) != 1).sum()))


def test_a_small_scale_is_fine_tuning() -> None:
    donor = _units(32, 0)
    match = match_channels(donor, _moved(donor, np.arange(32), np.full(32, 1.1, np.float32)), np.array([0, 1]))
    assert match.scaled == 0


def test_a_unit_of_norm_0_has_no_scale() -> None:
    donor, dead = _units(32, 0), _units(32, 0)
    for half in (dead.left, dead.right, dead.left_norms):
        half[5] = 0
    match = match_channels(donor, dead, np.array([0, 1]))
    assert match.scaled == 0 and np.isfinite(match.left).all()


def test_a_change_leaves_alone_what_it_does_not_name() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(TensorChange().apply(weight), weight)
    flipped = TensorChange(rows=np.array([1, 0]), row_factors=np.float32([1, -1]), columns=np.array([2, 0, 1]))
    np.testing.assert_array_equal(flipped.apply(weight), [[5, 3, 4], [-2, 0, -1]])
    np.testing.assert_array_equal(
        TensorChange(column_factors=np.float32([1, 0, 2])).apply(weight), [[0, 0, 4], [3, 0, 10]]
    )
    np.testing.assert_array_equal(flipped.apply(np.float32([7, 8])[:, None, None].repeat(3, 2))[:, 0, 0], [8, -7])
