"""Grid regions: deterministic, the same for an image whatever stands beside it, and telling of what is in a cell."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.data.prepare.raw import SMALL, picture
from unimo_ds.data.storage import members
from unimo_ds.data.vision import extractors, grid
from unimo_ds.data.vision.extractor_file import EXTRACTOR_FILE
from unimo_ds.data.vision.grid import GridExtractor, GridSettings
from unimo_ds.utils.errors import UserError


@pytest.fixture(scope="module")
def extractor() -> GridExtractor:
    return grid.fit([picture(i) for i in range(12)], seed=0, settings=SMALL)


def test_regions_are_valid_and_on_a_grid_of_two_scales(extractor: GridExtractor) -> None:
    (one,) = extractor.extract([picture(3)])
    assert one.boxes.shape == (20, 4)
    assert one.boxes.dtype == np.float32
    assert one.features.shape == (20, 24)
    assert one.features.dtype == np.float16
    assert one.class_ids.shape == one.class_probabilities.shape == (20, 4)
    areas = (one.boxes[:, 2] - one.boxes[:, 0]) * (one.boxes[:, 3] - one.boxes[:, 1])
    assert areas[:16].sum() == pytest.approx(1)
    assert areas[16:].sum() == pytest.approx(1)
    assert np.all(np.diff(one.class_probabilities.astype(float), axis=1) <= 0)
    members.check_values(one)


def test_fitting_and_extracting_are_deterministic(extractor: GridExtractor) -> None:
    again = grid.fit([picture(i) for i in range(12)], seed=0, settings=SMALL)
    other = grid.fit([picture(i) for i in range(12)], seed=1, settings=SMALL)
    assert again.fingerprint == extractor.fingerprint
    assert other.fingerprint != extractor.fingerprint
    first, second = (one.extract([picture(20)])[0] for one in (extractor, again))
    assert first.features.tobytes() == second.features.tobytes()
    assert first.class_ids.tobytes() == second.class_ids.tobytes()


def test_an_image_does_not_depend_on_its_neighbours(extractor: GridExtractor) -> None:
    together = extractor.extract([picture(i) for i in range(11)])
    for i in (0, 7, 10):
        alone = extractor.extract([picture(i)])[0]
        np.testing.assert_allclose(alone.features.astype(float), together[i].features.astype(float), atol=2e-3)


def test_a_change_in_one_corner_changes_its_cells_alone(extractor: GridExtractor) -> None:
    image = picture(1)
    changed = image.copy()
    changed.paste((255, 0, 0), (62, 47, 80, 60))
    before, after = (one.features.astype(float) for one in extractor.extract([image, changed]))
    moved = np.abs(after - before).max(axis=1)
    assert moved[15] > 0.1
    assert moved[[0, 1, 4, 8, 12]].max() < 1e-2
    assert moved[19] > 0.01
    assert moved[16] < 1e-2


def test_features_have_unit_scale(extractor: GridExtractor) -> None:
    features = np.concatenate([one.features for one in extractor.extract([picture(i) for i in range(12)])])
    assert features.astype(float).std() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("size", [(1, 1), (300, 20), (7, 500)])
def test_any_size_and_mode_is_taken(extractor: GridExtractor, size: tuple[int, int]) -> None:
    (one,) = extractor.extract([Image.new("L", size, 128)])
    assert np.isfinite(one.features.astype(float)).all()


def test_one_flat_image_is_enough_to_fit() -> None:
    made = grid.fit([Image.new("RGB", (20, 20), "white")], seed=0, settings=SMALL)
    (one,) = made.extract([picture(0)])
    members.check_values(one)


def test_saved_extractor_is_the_same(extractor: GridExtractor, tmp_path) -> None:
    path = extractor.save(tmp_path)
    assert path.name == EXTRACTOR_FILE
    for place in (path, tmp_path):
        loaded = extractors.load(place)
        assert loaded.fingerprint == extractor.fingerprint
        assert (loaded.feature_size, loaded.num_classes) == (24, 10)
    assert [file.name for file in tmp_path.iterdir()] == [EXTRACTOR_FILE]


def test_equal_extractors_are_equal_files(extractor: GridExtractor, tmp_path) -> None:
    """A manifest has the checksum: one that is saved again, by the next import, must not look damaged."""
    assert len({extractor.save(tmp_path).read_bytes() for _ in range(12)}) == 1
    assert extractors.load(tmp_path).fingerprint == extractor.fingerprint


def test_bad_extractors_are_refused(extractor: GridExtractor, tmp_path) -> None:
    with pytest.raises(UserError, match="no region extractor"):
        extractors.load(tmp_path)
    path = extractor.save(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot read"):
        extractors.load(path)
    settings = json.dumps(dataclasses.asdict(SMALL))
    save_file({"filters": extractor.parameters.filters}, path, metadata={"kind": "grid", "settings": settings})
    with pytest.raises(UserError, match="cannot read"):
        extractors.load(path)
    save_file({"filters": extractor.parameters.filters}, path, metadata={"kind": "scenes"})
    with pytest.raises(UserError, match="grid extractor"):
        extractors.load(path)


@pytest.mark.parametrize(
    "settings",
    [
        GridSettings(grids=(4, 3)),
        GridSettings(image_side=97),
        GridSettings(feature_size=100_000),
        GridSettings(stored_classes=200),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: GridSettings) -> None:
    with pytest.raises(UserError):
        grid.fit([picture(0)], seed=0, settings=settings)


def test_no_images_are_refused() -> None:
    with pytest.raises(UserError, match="no images"):
        grid.fit([], seed=0)
