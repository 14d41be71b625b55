"""Damaged and hostile image bytes are refused with a reason; sound ones come out upright and RGB."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from unimo_ds.data.vision.images import BadImage, decode, encode_jpeg, is_jpeg


def _picture(width: int = 40, height: int = 24) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def test_jpeg_round_trip() -> None:
    data = encode_jpeg(_picture())
    assert is_jpeg(data)
    assert decode(data).size == (40, 24)
    assert decode(data).mode == "RGB"


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    _picture().convert(mode).save(buffer, format="JPEG")
    assert decode(buffer.getvalue()).mode == "RGB"


def test_sixteen_bits_of_grey_are_the_picture_that_eight_are() -> None:
    grey = np.asarray(_picture().convert("L"))
    pictures = []
    for array in (grey, (grey.astype(np.uint16) << 8) + 99):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format="PNG")
        pictures.append(decode(buffer.getvalue()))
    assert Image.open(buffer).mode == "I;16"
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    buffer = io.BytesIO()
    _picture().save(buffer, format="JPEG", exif=exif)
    assert decode(buffer.getvalue()).size == (24, 40)


def test_large_jpeg_is_decoded_small_enough_but_not_smaller() -> None:
    image = decode(encode_jpeg(_picture(1600, 1200)), shrink_to=160)
    assert 160 <= min(image.size) < 1200


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_truncated_bytes_are_refused(share: float) -> None:
    data = encode_jpeg(_picture(200, 200))
    with pytest.raises(BadImage):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"not an image", b"GIF89a" + bytes(50), b"\xff\xd8\xff\xe0" + bytes(100)])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        decode(data)


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (9_000, 9_000)])
def test_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    start = time.perf_counter()
    with pytest.raises(BadImage, match=r"pixels"):
        decode(data)
    assert time.perf_counter() - start < 0.1


def _of_scans(number: int) -> bytes:
    """A grey JPEG of 8 x 8 pixels, coded progressively in so many scans, of which all but the first change nothing."""

    def segment(mark: int, content: bytes) -> bytes:
        return bytes([0xFF, mark]) + (len(content) + 2).to_bytes(2, "big") + content

    table = bytes([1, *[0] * 15])
    parts = [
        b"\xff\xd8",
        segment(0xDB, bytes([0, *[1] * 64])),
        segment(0xC2, bytes([8, 0, 8, 0, 8, 1, 1, 0x11, 0])),
        segment(0xC4, b"\0" + table + b"\0"),
        segment(0xC4, b"\x10" + table + b"\0"),
        segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + b"\0",
        (segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + b"\0") * (number - 1),
        b"\xff\xd9",
    ]
    return b"".join(parts)


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    assert decode(_of_scans(10)).size == (8, 8)
    with pytest.raises(BadImage, match="more than 5000 scans"):
        decode(_of_scans(5001))


def test_damaged_exif_data_are_not_reported_for_every_image(recwarn: pytest.WarningsRecorder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32)).save(buffer, "JPEG", exif=exif)
    damaged = buffer.getvalue().replace(b"\x01\x12\x00\x03\x00\x00\x00\x01", b"\x01\x12\x00\x05\x7f\xff\xff\xff")
    assert damaged != buffer.getvalue()
    assert decode(damaged).size == (64, 32)
    assert not recwarn.list
