"""Places of patches at another resolution: by the formula, in grids that are no squares, and bit-equal where nothing changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests import support
from unimo_ds.config import ModelConfig
from unimo_ds.models import positions
from unimo_ds.models.unimo import Unimo
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.seed import generator

SIZES = support.model_config(num_image_layers=1, region_tag_sizes=(12,), patch_columns=4, region_feature_size=3 * 4**2)
TABLE = "image_transformer.tags.0.weight"


def weights_along(old: int, new: int) -> np.ndarray:
    """[new, old] of cubic convolution (a = -0.75) between centres of cells, the edges repeated."""

    def kernel(distance: float) -> float:
        a, d = -0.75, abs(distance)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    found = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        for near in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            found[row, min(max(near, 0), old - 1)] += kernel(centre - near)
    return found


@pytest.mark.parametrize(("old", "new"), [((3, 4), (5, 9)), ((4, 3), (3, 4)), ((2, 6), (3, 4)), ((14, 14), (24, 24))])
def test_positions_are_interpolated_along_rows_and_columns(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Also between grids of as many patches, whose numbers mean other places."""
    learned = generator(3).standard_normal((*old, 5))
    expected = np.einsum("ri,cj,ijd->rcd", weights_along(old[0], new[0]), weights_along(old[1], new[1]), learned)
    found = positions.resized(torch.tensor(learned).flatten(0, 1), old, new)
    np.testing.assert_allclose(found.numpy(), expected.reshape(-1, 5), rtol=1e-5, atol=1e-5)


def at(*, columns: int, patches: int) -> ModelConfig:
    return dataclasses.replace(SIZES, region_tag_sizes=(patches,), patch_columns=columns)


def test_nothing_but_the_positions_of_patches_changes() -> None:
    weights = dict(Unimo(SIZES, seed=3).named_parameters())
    assert positions.at_resolution(weights, SIZES, SIZES, where="it") is weights
    square, stated = at(columns=0, patches=9), at(columns=3, patches=9)
    assert positions.at_resolution(weights, square, stated, where="it") is weights, "a square says it without words"
    new = at(columns=7, patches=35)
    found = positions.at_resolution(weights, SIZES, new, where="it")
    assert list(found) == list(weights)
    assert all(found[name] is weights[name] for name in weights if name != TABLE)
    table, model = found[TABLE], Unimo(new, seed=3)
    assert torch.equal(table[:-1], positions.resized(weights[TABLE][:-1], (3, 4), (5, 7)))
    assert not table[-1].any(), "no patch has no place"
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in model.named_parameters()
    }
    # Half of the precision is enough to store them, and what is made of them is whole again.
    halves = {name: value.half() for name, value in weights.items()}
    assert positions.at_resolution(halves, SIZES, new, where="it")[TABLE].dtype == torch.float32


def test_weights_without_patches_are_let_through() -> None:
    plain = support.model_config()
    weights = dict(Unimo(plain).named_parameters())
    assert positions.at_resolution(weights, plain, SIZES, where="it") is weights
    own = dict(Unimo(SIZES).named_parameters())
    assert positions.at_resolution(own, SIZES, plain, where="it") is own, "for the shapes to be compared"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            SIZES,
            dataclasses.replace(SIZES, region_feature_size=192),
            "it reads patches of 4 x 4 pixels, .*--patch-side 4",
        ),
        (at(columns=0, patches=12), at(columns=0, patches=25), "positions of 12 patches, .* must say how 12 lie"),
        (at(columns=0, patches=9), at(columns=0, patches=12), "must say how 12 lie, for they make no square"),
    ],
)
def test_what_cannot_be_interpolated_is_said(old: ModelConfig, new: ModelConfig, said: str) -> None:
    with pytest.raises(UserError, match=said):
        positions.at_resolution(dict(Unimo(old).named_parameters()), old, new, where="it")


def test_grids_are_squares_unless_it_is_said() -> None:
    assert [at(columns=columns, patches=12).patch_grid for columns in (0, 4, 6, 5)] == [None, (3, 4), (2, 6), None]
    assert at(columns=0, patches=576).patch_grid == (24, 24)
    assert dataclasses.replace(SIZES, num_image_layers=0).patch_grid is None
    assert positions.note(at(columns=0, patches=9), at(columns=3, patches=9)) == ""
    assert positions.note(at(columns=0, patches=9), SIZES) == (
        "images of 3 x 4 patches, the model was trained on 3 x 3: positions are interpolated"
    )
