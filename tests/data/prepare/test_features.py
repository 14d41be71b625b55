"""Region features in the files that others made: read back as they were written, and every kind of damage named once."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.prepare import foreign
from tests.data.prepare.foreign import (
    CLASSES,
    FEATURES,
    bottom_up_line,
    detections,
    lxmert_line,
    uniter_arrays,
    vinvl_rows,
    write_lines,
)
from tests.data.prepare.test_readers import read
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.prepare.command import main
from unimo_ds.data.prepare.readers import detections as detecting
from unimo_ds.data.prepare.settings import ImportSettings
from unimo_ds.data.prepare.verify import verify
from unimo_ds.data.schema import Regions
from unimo_ds.utils.errors import UserError


def held(format: str, *files: Path, **options) -> ImportSettings:
    """Settings for region features alone, of the small detector of these tests."""
    values = {"feature_size": FEATURES, "num_classes": CLASSES, "max_classes": 2, **options}
    return ImportSettings("images", Path("out"), features=files, features_format=format, **values)


def expect(regions: Regions | None, number: int, *, classes: str, half: bool = False) -> None:
    """The regions are those of `detections(number)`."""
    assert regions is not None
    found = detections(number)
    tolerance = 2e-3 if half else 1e-6
    np.testing.assert_allclose(regions.boxes, found["shares"], atol=tolerance)
    np.testing.assert_allclose(regions.features, found["features"], rtol=1e-3, atol=1e-3)
    if classes == "none":
        assert not regions.class_probabilities.any()
    else:
        assert regions.class_ids[:, 0].tolist() == found["ids"].tolist()
        np.testing.assert_allclose(regions.class_probabilities[:, 0], found["confidences"], atol=2e-3)
        assert bool(regions.class_probabilities[:, 1].any()) == (classes == "distribution")


def test_bottom_up_and_lxmert_lines(tmp_path: Path) -> None:
    plain = write_lines(tmp_path / "plain.tsv", [bottom_up_line(str(i), detections(i)) for i in range(3)])
    records, _ = read(held("bottom-up-tsv", plain))
    assert [record.name for record in records] == ["0", "1", "2"]
    for i, record in enumerate(records):
        expect(record.regions, i, classes="none")
        assert record.details == {"size": [200, 100]}
    names = "img_id\timg_h\timg_w\tobjects_id\tobjects_conf\tattrs_id\tattrs_conf\tnum_boxes\tboxes\tfeatures"
    other = write_lines(tmp_path / "lxmert.tsv", [names, *(lxmert_line(f"COCO_{i}", detections(i)) for i in range(2))])
    records, report = read(held("bottom-up-tsv", other))
    assert report.skipped == {}
    for i, record in enumerate(records):
        expect(record.regions, i, classes="one")


def test_vinvl_with_line_index_and_predictions(tmp_path: Path) -> None:
    lines = [f"{i}\t3\t{vinvl_rows(detections(i))}" for i in range(2)]
    lines.append("2\t" + json.dumps({"num_boxes": 3, "features": vinvl_rows(detections(2))}))
    features = write_lines(tmp_path / "features.tsv", lines, index=True)
    records, _ = read(held("vinvl-tsv", features))
    for i, record in enumerate(records):
        expect(record.regions, i, classes="none")
    labels = [
        {"class": f"c{number}", "conf": float(confidence), "rect": [0, 0, 1, 1]}
        for number, confidence in zip(detections(1)["ids"], detections(1)["confidences"], strict=True)
    ]
    predictions = write_lines(tmp_path / "predictions.tsv", [f"1\t{json.dumps({'objects': labels})}", "0\t[]"])
    classes = foreign.write_json(tmp_path / "map.json", {"label_to_idx": {f"c{i}": i for i in range(CLASSES)}})
    records, report = read(held("vinvl-tsv", features, feature_labels=predictions, feature_classes=classes))
    assert [record.name for record in records] == ["1"]
    expect(records[0].regions, 1, classes="one")
    assert set(report.skipped) == {"features without predictions", "predictions of another number of boxes"}
    # An index of another table would cut lines anywhere, and a short one lose some.
    second = features.with_suffix(".lineidx").read_text(encoding="ascii").split()[1]
    for offsets in ("0\n100\n", "", f"{second}\n", f"0\n{second}\n{10**30}\n", "0\n0\n"):
        features.with_suffix(".lineidx").write_text(offsets, encoding="ascii")
        with pytest.raises(UserError, match="does not belong to features"):
            read(held("vinvl-tsv", features))
    (tmp_path / "names.txt").write_bytes(b"c0\ncaf\xe9\nc2\n")
    with pytest.raises(
        UserError, match=r"names\.txt:2 is not UTF-8"
    ):  # else all behind it had the number before theirs
        read(held("vinvl-tsv", features, feature_labels=predictions, feature_classes=tmp_path / "names.txt"))


@pytest.mark.parametrize("write", [foreign.npz, foreign.msgpack_numpy])
def test_uniter_lmdb(write, tmp_path: Path) -> None:
    names = {f"coco_train2014_{i:012d}.npz": write(uniter_arrays(detections(i))) for i in range(2)}
    database = foreign.write_lmdb(tmp_path / "feats", names)
    records, report = read(held("uniter-lmdb", database))
    assert [record.name for record in records] == list(names)
    assert report.skipped == {}
    for i, record in enumerate(records):
        expect(record.regions, i, classes="distribution", half=True)


def test_hdf5_of_groups_and_of_columns(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        for i in range(2):
            found = detections(i)
            for name, value in (
                ("features", found["features"]),
                ("boxes", found["pixels"]),
                ("img_w", 200),
                ("img_h", 100),
                ("obj_id", found["ids"]),
                ("obj_conf", found["confidences"]),
            ):
                file[f"img{i}/{name}"] = value
    with h5py.File(tmp_path / "columns.h5", "w") as file:
        # The second image has one region less: columns are padded.
        file["image_id"] = np.array([40, 41])
        file["num_boxes"] = np.array([3, 2])
        file["boxes"] = np.stack([detections(i)["shares"] for i in range(2)])
        file["features"] = np.stack([detections(i)["features"] for i in range(2)])
        file["cls_prob"] = np.stack([detections(i)["probabilities"] for i in range(2)])
    records, _ = read(held("hdf5", tmp_path / "groups.h5", tmp_path / "columns.h5"))
    assert [record.name for record in records] == ["img0", "img1", "40", "41"]
    expect(records[0].regions, 0, classes="one")
    expect(records[1].regions, 1, classes="one")
    expect(records[2].regions, 0, classes="distribution")
    assert records[3].regions is not None
    assert records[3].regions.features.shape == (2, FEATURES)


def test_damaged_hdf5_is_named(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    found = detections(0)
    plain = {"features": found["features"], "boxes": found["shares"]}
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        damaged = {
            "a good": {},
            "b unsure": {"obj_id": found["ids"], "obj_conf": np.ones(4, np.float32)},
            "c column": {"obj_id": found["ids"], "obj_conf": np.ones((3, 1), np.float32)},
            "d sizes": {"img_w": np.array([9, 9]), "img_h": np.array([9, 9])},
        }
        for name, more in damaged.items():
            for field, value in {**plain, **more}.items():
                file[f"{name}/{field}"] = value
        file["e group/features/inside"] = 1
        file["e group/boxes"] = found["shares"]
    with h5py.File(tmp_path / "short.h5", "w") as file:
        file["image_id"] = np.array([40, 41])
        for field, value in plain.items():
            file[field] = value[None]
    records, report = read(held("hdf5", tmp_path / "groups.h5", tmp_path / "short.h5"))
    assert [record.name for record in records] == ["a good", "40"]
    assert {reason: [name[:2] for name in names] for reason, names in report.skipped.items()} == {
        "confidences of a wrong shape": ["b ", "c "],
        "features that cannot be read": ["d ", "e ", "41"],
    }
    with h5py.File(tmp_path / "ids.h5", "w") as file:
        file["image_id/inside"] = 1
    with pytest.raises(UserError, match="its images cannot be listed"):
        read(held("hdf5", tmp_path / "ids.h5"))


def test_every_kind_of_damage_is_named_once(tmp_path: Path) -> None:
    def line(name: str, **changes) -> str:
        return bottom_up_line(name, {**detections(0), **changes})

    nan = detections(0)["features"].copy()
    nan[1, 2] = np.nan
    good = line("good").split("\t")
    lines = {
        "good": "\t".join(good),
        "base64": "\t".join([*("base64", *good[1:5]), "@@@@"]),
        "cut": "\t".join([*("cut", *good[1:5]), good[5][:-12]]),
        "nan": line("nan", features=nan),
        "large": line("large", features=nan * 0 + 1e6),
        "size": line("size", features=np.ones((3, FEATURES + 1), np.float32)),
        "outside": line("outside", pixels=detections(0)["pixels"] + 150),
        "turned": line("turned", pixels=detections(0)["pixels"][:, [2, 3, 0, 1]]),
        "columns": "columns\t1\t2",
        "number": "\t".join(["number", "wide", *good[2:]]),
        "zero": "\t".join(["zero", "0", *good[2:]]),
        "nameless": "\t".join(["", *good[1:]]),
        "padded": line("padded", **{name: detections(0)[name] * [[1], [1], [0]] for name in ("features", "pixels")}),
        "boxless": line("boxless", pixels=detections(0)["pixels"] * 0),
    }
    lines["large"] = line("large", features=np.full((3, FEATURES), 1e6, np.float32))
    file = write_lines(tmp_path / "features.tsv", [*lines.values(), lines["good"]])
    records, report = read(held("bottom-up-tsv", file))
    assert [record.name for record in records] == ["good"]
    named = {reason: [name.split()[0] for name in names] for reason, names in report.skipped.items()}
    assert named == {
        "a line without an id": ["features.tsv,"],
        "an image that comes twice": ["good"],
        "a field that is not base64": ["base64"],
        "features of a wrong shape": ["cut"],
        "features with NaN or infinite values": ["nan"],
        "features beyond the range of float16": ["large"],
        "features of another size": ["size"],
        "boxes outside the image": ["outside"],
        "boxes whose corners are in the wrong order": ["turned"],
        "a line with another number of columns": ["columns"],
        "regions that are all zeros": ["padded"],
        "boxes that are all zeros": ["boxless"],
        "a field that is not a number": ["number"],
        "an image without width and height": ["zero"],
    }
    # Nothing is lost: every line is either taken or named.
    assert len(records) + sum(map(len, report.skipped.values())) == len(lines) + 1


def test_lmdb_values_that_are_not_plain_arrays_are_named(tmp_path: Path) -> None:
    import msgpack

    arrays = uniter_arrays(detections(0))
    objects = io.BytesIO()
    np.savez(objects, features=np.array([{}, "x"], dtype=object), norm_bb=arrays["norm_bb"])
    evil = {"nd": True, "type": "|O", "kind": b"O", "shape": [1], "data": b"cos\nsystem\n(S'true'\ntR."}
    values = {
        "a good": foreign.npz(arrays),
        "b objects": objects.getvalue(),
        "c evil": msgpack.packb({"features": evil, "norm_bb": evil}),
        "d cut": foreign.npz(arrays)[:200],
        "e text": b"\xc1 neither",
        "g list as a key": b"\x81\x91\x01\x01",
        "f half": foreign.msgpack_numpy({"features": arrays["features"]}),
        "h scalar": foreign.npz({**arrays, "features": np.float32(1)}),
    }
    records, report = read(held("uniter-lmdb", foreign.write_lmdb(tmp_path / "feats", values)))
    assert [record.name for record in records] == ["a good"]
    assert sum(map(len, report.skipped.values())) == 7
    pickled = foreign.write_lmdb(tmp_path / "pickles", {"1": b"\x80\x03}q\x00X\x08\x00\x00\x00image_idq\x01K\x01s."})
    with pytest.raises(UserError, match="holds pickles, which can run any code"):
        read(held("uniter-lmdb", pickled))


def test_boxes_that_are_shares_already_are_not_divided_again(tmp_path: Path) -> None:
    """They lie within two pixels of the image, where no detector has all of its boxes."""
    lines = [bottom_up_line(str(i), {**detections(i), "pixels": detections(i)["shares"]}) for i in range(2)]
    records, report = read(held("bottom-up-tsv", write_lines(tmp_path / "shares.tsv", lines)))
    assert report.skipped == {}
    for i, record in enumerate(records):
        expect(record.regions, i, classes="none")


def test_numbers_of_classes_and_of_boxes_that_cannot_be_are_named(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    found = detections(0)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for name, more in {
            "a good": {"num_boxes": 2},
            "b wraps": {"obj_id": found["ids"] + 2**32, "obj_conf": found["confidences"]},
            "b2 nan": {"cls_prob": np.array([[0.5, 0.3, 0.2, *[0] * (CLASSES - 4), np.nan]] * 3)},
            "c nan": {"obj_id": np.full(3, np.nan), "obj_conf": found["confidences"]},
            "d negative": {"num_boxes": -1},
            "e more": {"num_boxes": 4},
        }.items():
            for field, value in {"features": found["features"], "boxes": found["shares"], **more}.items():
                file[f"{name}/{field}"] = value
    records, report = read(held("hdf5", tmp_path / "features.h5"))
    assert [record.name for record in records] == ["a good"]
    assert {reason: [name[:2] for name in names] for reason, names in report.skipped.items()} == {
        "classes beyond their number": ["b ", "c "],
        "class probabilities outside [0, 1]": ["b2"],
        "another number of boxes than of rows": ["d ", "e "],
    }


def test_an_lmdb_that_is_cut_or_damaged_is_one_sentence(tmp_path: Path) -> None:
    """Reading pages that are not there would end the process by SIGBUS."""
    values = {f"{i:03d}": foreign.npz(uniter_arrays(detections(i))) for i in range(60)}
    file = foreign.write_lmdb(tmp_path / "feats", values) / "data.mdb"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"data.mdb is cut: it has \d+ bytes of \d+; fetch it again"):
        read(held("uniter-lmdb", file.parent))
    file.write_bytes(whole[:9000] + whole[8000:])
    with pytest.raises(UserError, match=r"feats is damaged \(.*\); fetch it again"):
        read(held("uniter-lmdb", file.parent))


def test_sure_regions_are_kept() -> None:
    many = detections(3, count=150)
    sure = np.where(np.arange(150) % 5 == 0, 0.9, 0.1).astype(np.float32)
    found = detecting.Detections(many["features"], many["shares"], confidences=sure)
    kept = detecting.to_regions(found, held("hdf5"))
    np.testing.assert_array_equal(kept.boxes, many["shares"][::5])
    few = detecting.to_regions(
        detecting.Detections(many["features"], many["shares"], confidences=sure * 0), held("hdf5")
    )
    assert len(few.boxes) == detecting.FEWEST_REGIONS


def test_features_with_captions_become_one_good_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [bottom_up_line(str(i), detections(i)) for i in (9, 25, 30)]
    features = str(write_lines(tmp_path / "trainval.tsv", lines))
    content = {
        "images": [{"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg"} for i in (9, 25)],
        "annotations": [{"image_id": i, "id": i, "caption": f"picture {i}"} for i in (9, 25)],
    }
    captions = str(foreign.write_json(tmp_path / "captions.json", content))
    sizes = ["--feature-size", str(FEATURES), "--num-classes", str(CLASSES), "--vocabulary-size", "300"]
    common = ["--features", features, "--features-format", "bottom-up-tsv", *sizes, "--output", str(tmp_path / "data")]
    assert main(["import", "--format", "coco", "--captions", captions, "--source", "coco", *common]) == 0
    assert "an image without a caption: 1 (30)" in capsys.readouterr().out
    assert main(["import", "--kind", "images", "--source", "alone", *common]) == 0
    assert verify(tmp_path / "data") == []
    corpus = Corpus.open(tmp_path / "data")
    assert (corpus.feature_size, corpus.num_region_classes, len(corpus)) == (FEATURES, CLASSES, 5)
    by_file = {corpus.details(i)["file"]: corpus.read(i) for i in range(len(corpus)) if corpus.read(i).captions}
    assert {name: sample.captions[0].text for name, sample in by_file.items()} == {"9": "picture 9", "25": "picture 25"}
    expect(by_file["25"].regions, 25, classes="none")
    # Features of another detector do not belong into this folder.
    assert main(["import", "--kind", "images", "--source", "more", *common, "--feature-name", "other"]) == 2
    assert "was made with region extractor" in capsys.readouterr().err
