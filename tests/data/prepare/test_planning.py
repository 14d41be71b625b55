"""Planning holds millions of names and captions as text, and finds with them what Python's own objects would find."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.data.prepare.readers import names
from unimo_ds.data.prepare.readers.compact import CompactList
from unimo_ds.data.prepare.readers.names import Annotations
from unimo_ds.data.prepare.readers.protocol import Annotation
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.json_entries import array_items, objects_under

TEXT = st.text(max_size=8) | st.sampled_from(["\udcff.jpg", "\x00", '"', "日本", "a\nb"])
NAMES = st.sampled_from(
    ["a.jpg", "A.JPG", "x/a.jpg", "x/a.png", "./b_7.jpg", "b_7.jpg", "c/b_7", "7", "12", "b_012.jpg"]
)
ANNOTATIONS = st.builds(
    Annotation,
    st.lists(NAMES, min_size=1, max_size=2).map(tuple),
    st.lists(st.sampled_from(["one", "two", "three"]), max_size=2).map(tuple),
    st.none() | st.sampled_from([7, 12]),
    st.lists(NAMES, max_size=1).map(tuple),
)


@given(st.lists(st.recursive(TEXT | st.integers() | st.none(), st.lists, max_leaves=5), max_size=20))
@settings(max_examples=30)
def test_values_come_back(values: list[object]) -> None:
    found = CompactList(values)
    assert list(found) == values
    with pytest.raises(IndexError):
        found[len(values)]


def test_a_value_takes_its_text_and_a_number() -> None:
    tracemalloc.start()
    found = CompactList([f"{i:09d}.jpg", [0, i]] for i in range(20_000))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found[19_999] == ["000019999.jpg", [0, 19_999]]
    assert size < 60 * len(found)


def spellings(annotation: Annotation, rank: int) -> list[object]:
    if rank == 3:
        number = annotation.number
        return [] if number is None or names.number_of(annotation.names[0]) != number else [number]
    return [
        (names.clean, lambda name: Path(names.clean(name)).name, names.stem)[rank](name) for name in annotation.names
    ]


def merged(annotations: list[Annotation]) -> list[Annotation]:
    """Those whose first name is exactly one known one's belong to it."""
    found: list[Annotation] = []
    for one in annotations:
        clean = names.clean(one.names[0])
        owners = [i for i, other in enumerate(found) if clean in map(names.clean, other.names)]
        if len(owners) == 1:
            first = found[owners[0]]
            captions = (*first.captions, *one.captions)
            found[owners[0]] = Annotation(first.names, captions, first.number, first.known_as)
        else:
            found.append(one)
    return found


@given(st.lists(ANNOTATIONS, max_size=6), st.lists(NAMES, max_size=6))
def test_the_most_exact_spelling_that_is_one_images_alone_finds_it(given: list[Annotation], wanted: list[str]) -> None:
    annotations, expected = Annotations(given), merged(given)
    assert list(annotations) == expected
    positions, ranks = annotations.find(wanted)
    for name, position, rank in zip(wanted, positions, ranks, strict=True):
        image = Annotation((name,), (), names.number_of(name))
        for at in range(4):
            keys = spellings(image, at)
            owners = [i for i, one in enumerate(expected) if set(keys) & set(spellings(one, at))]
            if len(owners) == 1:
                assert (position, rank) == (owners[0], at)
                break
        else:
            assert position == -1


def write(folder: Path, text: str) -> Path:
    path = folder / "a.json"
    path.write_text(text, encoding="utf-8")
    return path


@given(
    st.dictionaries(
        st.sampled_from(["images", "annotations", "info"]),
        st.lists(st.dictionaries(TEXT, TEXT | st.floats(allow_nan=False), max_size=2), max_size=4),
    ),
    st.sampled_from([None, 1]),
    st.sampled_from([1, 2, 7, 1 << 20]),
)
def test_objects_are_those_of_the_whole_document(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, list[object]], indent: int | None, chunk: int
) -> None:
    content = {"info": {"images": [3]}, **content, "last": 1}  # type: ignore[dict-item]
    path = write(tmp_path_factory.mktemp("json"), json.dumps(content, indent=indent))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("unimo_ds.utils.json_entries._CHUNK", chunk)
        if "images" in content:
            assert list(objects_under(path, "images", what="x")) == content["images"]
        else:
            with pytest.raises(UserError, match="is not x: it has no list of objects named 'images'"):
                list(objects_under(path, "images", what="x"))


@pytest.mark.parametrize(
    "text",
    [
        *('{"images": [{}]', '{"images": [{}], "a"', '{"images": [{}], "a": [', '{"images": [{}] "a": 1}'),
        *('{"images": [{}], 3: 1}', '{"images" [{}]}', '{"images": [{},]}', '{"images": [{}],}', "", "{"),
    ],
)
def test_a_document_that_is_cut_or_broken_anywhere_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=r"a\.json is (cut or )?not valid JSON"):
        list(objects_under(path, "images", what="x"))


@pytest.mark.parametrize(
    "text", ['{"images": [3]}', '{"images": [{}, []]}', '{"images": {}}', '{"images": 1}', "[{}]", "3 "]
)
def test_a_list_of_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"a\.json is not x: it has no list of objects named 'images'"):
        list(objects_under(write(tmp_path, text), "images", what="x"))


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_number_may_go_on_in_the_next_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("unimo_ds.utils.json_entries._CHUNK", chunk)
    numbers = [12.5, -0.25, 1e300, 1e-05, 7, True, None]
    path = write(tmp_path, json.dumps({"version": 1.5, "numbers": numbers, "images": [{}]}))
    assert list(objects_under(path, "images", what="x")) == [{}]
    assert list(array_items(write(tmp_path, json.dumps(numbers)), what="x")) == numbers


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_a_byte_that_is_no_text_is_named_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("unimo_ds.utils.json_entries._CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_bytes(b'[1, 2, "' + "é".encode() + b'", "\xff"]')
    with pytest.raises(UserError, match=r"a\.json is not UTF-8: invalid start byte at byte 14; fetch it again"):
        list(array_items(path, what="x"))


def test_what_is_broken_at_its_beginning_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unimo_ds.utils.json_entries._CHUNK", 100)
    path = write(tmp_path, '{"images": [{"id": 1}, {"id" 2}' + ", {}" * 10**6 + "]}")
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a\.json is not valid JSON: Expecting ':' delimiter before '2}, \{\}"):
        list(objects_under(path, "images", what="x"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 10


def test_a_number_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json is not valid JSON: Exceeds the limit"):
        list(objects_under(write(tmp_path, '{"images": [{"id": ' + "9" * 5000 + "}]}"), "images", what="x"))


def test_a_document_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimo_ds.utils.json_entries._CHUNK", 1 << 14)
    listed = [{"id": i, "caption": "some words that are long enough " * 3} for i in range(5_000)]
    whole = write(tmp_path, json.dumps({"annotations": listed}))
    part = tmp_path / "b.json"
    part.write_text(json.dumps(listed))
    size = part.stat().st_size

    def peak(items: Iterator[object]) -> int:
        tracemalloc.start()
        assert sum(1 for _ in items) == len(listed)
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    assert peak(objects_under(whole, "annotations", what="x")) < size / 2
    assert peak(array_items(part, what="x")) < size / 2
