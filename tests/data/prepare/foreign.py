"""Writers of the formats that others use, after their public descriptions: samples for the readers' tests."""

import base64
import io
import json
import tarfile
from pathlib import Path

import numpy as np

FEATURES, CLASSES = 6, 9


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def detections(number: int, *, count: int = 3) -> dict[str, np.ndarray]:
    """Region features of an image of 200 x 100 pixels; a function of the number."""
    random = np.random.default_rng(number)
    corner = random.random((count, 2)) * 0.5
    shares = np.concatenate([corner, corner + random.random((count, 2)) * 0.4], 1)
    probabilities = random.dirichlet(np.ones(CLASSES), count)
    return {
        "features": random.standard_normal((count, FEATURES)).astype(np.float32),
        "shares": shares.astype(np.float32),
        "pixels": (shares * [200, 100, 200, 100]).astype(np.float32),
        "probabilities": probabilities.astype(np.float32),
        "ids": probabilities.argmax(1),
        "confidences": probabilities.max(1).astype(np.float32),
    }


def text64(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()


def bottom_up_line(name: str, found: dict[str, np.ndarray]) -> str:
    fields = [name, 200, 100, len(found["pixels"]), text64(found["pixels"], "<f4"), text64(found["features"], "<f4")]
    return "\t".join(map(str, fields))


def lxmert_line(name: str, found: dict[str, np.ndarray]) -> str:
    ids = text64(found["ids"], "<i8")
    confidences = text64(found["confidences"], "<f4")
    boxes, features = text64(found["pixels"], "<f4"), text64(found["features"], "<f4")
    return "\t".join(map(str, [name, 100, 200, ids, confidences, ids, confidences, len(found["ids"]), boxes, features]))


def vinvl_rows(found: dict[str, np.ndarray]) -> str:
    shares = found["shares"]
    geometry = np.concatenate([shares, shares[:, 2:] - shares[:, :2]], 1)
    return text64(np.concatenate([found["features"], geometry], 1), "<f4")


def write_lines(path: Path, lines: list[str], *, index: bool = False) -> Path:
    content = [f"{line}\n".encode() for line in lines]
    path.write_bytes(b"".join(content))
    if index:
        starts = np.cumsum([0, *map(len, content)])[:-1]
        path.with_suffix(".lineidx").write_text("\n".join(map(str, starts)), encoding="ascii")
    return path


def uniter_arrays(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    shares = found["shares"]
    boxes = np.concatenate([shares, shares[:, 2:] - shares[:, :2]], 1)
    return {
        "features": found["features"].astype(np.float16),
        "norm_bb": boxes.astype(np.float16),
        "conf": found["confidences"].astype(np.float16),
        "soft_labels": found["probabilities"].astype(np.float16),
    }


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def msgpack_numpy(arrays: dict[str, np.ndarray]) -> bytes:
    """What msgpack with msgpack-numpy's encoder writes."""
    import msgpack

    encoded = {
        name: {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}
        for name, array in arrays.items()
    }
    return msgpack.packb(encoded, use_bin_type=True)


def write_lmdb(path: Path, values: dict[str, bytes]) -> Path:
    import lmdb

    with lmdb.open(str(path), map_size=2**24) as database, database.begin(write=True) as transaction:
        for name, value in values.items():
            transaction.put(name.encode(), value)
        transaction.put(b"__keys__", json.dumps(list(values)).encode())
    return path


def write_samples(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    """A tar as img2dataset writes it: members of a sample beside each other."""
    with tarfile.open(path, "w") as archive:
        for base, members in samples.items():
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{base}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path
