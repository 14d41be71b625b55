"""JSON is read as its type says, and everything else is one sentence that names the file and the place."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimo_ds.config import RunConfig, to_dict
from unimo_ds.engine.rollback import Rollback
from unimo_ds.engine.state import Described
from unimo_ds.utils.errors import UserError
from unimo_ds.utils.strict_json import Partial, read, typed

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@dataclass(frozen=True)
class Inner:
    number: int
    share: Annotated[float, "a remark"] = 0.5


@dataclass(frozen=True)
class Outer:
    inner: Inner | None
    choice: Literal["a", "b"] = "a"
    pair: tuple[int, str] = (1, "x")
    many: tuple[Inner, ...] = ()
    values: Sequence[float] = ()
    table: Mapping[str, int | float] = field(default_factory=dict)
    anything: Any = None


def test_values_of_the_type_are_taken() -> None:
    values = {"inner": {"number": 3, "share": 1}, "pair": [2, "y"], "many": [{"number": 1}], "values": [1, 2.5]}
    found = typed(Outer, {**values, "table": {"a": 1, "b": 1.5}}, where="here")
    assert found == Outer(Inner(3, 1.0), "a", (2, "y"), (Inner(1),), (1.0, 2.5), {"a": 1, "b": 1.5})
    assert type(found.table["a"]) is int
    assert type(found.inner.share) is float


@dataclass(frozen=True)
class Some(Partial):
    inner: Inner


def test_a_part_of_an_object_is_read_and_no_less_strictly() -> None:
    assert typed(Some, {"inner": {"number": 3}, "other": [1]}, where="here") == Some(Inner(3))
    with pytest.raises(UserError, match="here: inner has unknown key 'nmber'; did you mean 'number'"):
        typed(Some, {"inner": {"nmber": 3}}, where="here")
    with pytest.raises(UserError, match="here has no 'inner'"):
        typed(Some, {"other": 1}, where="here")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "here has [] where an object belongs"),
        ({}, "here has no 'inner'"),
        ({"inner": None, "chioce": "a"}, "here has unknown key 'chioce'; did you mean 'choice'?"),
        ({"inner": {"number": True}}, "here: inner: number has true where a whole number belongs"),
        ({"inner": {"number": 2**64}}, "where a whole number belongs"),
        ({"inner": {"number": 1, "share": math.nan}}, "here: inner: share has NaN where a finite number belongs"),
        ({"inner": {"number": 1, "share": "1"}}, 'here: inner: share has "1" where'),
        ({"inner": None, "choice": "c"}, 'here: choice has "c" where one of a, b belongs'),
        ({"inner": None, "pair": [1]}, "here: pair has [1] where a list of 2 belongs"),
        ({"inner": None, "many": [{"number": 1}, 5]}, "here: many[1] has 5 where an object belongs"),
        ({"inner": None, "table": {"a": None}}, "here: table: a has null where a finite number belongs"),
        ({"inner": None, "values": "y" * 99}, f'here: values has "{"y" * 39}... where a list belongs'),
    ],
)
def test_others_are_named_with_their_place(values: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        typed(Outer, values, where="here")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"inner": ' + b"9" * 5000]
)
def test_damaged_files_are_one_sentence_with_a_cure(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "file.json", Outer, cure="delete it")
    assert str(caught.value).startswith(f"{tmp_path / 'file.json'} is not JSON (")
    assert str(caught.value).endswith("; delete it")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        read(tmp_path, Outer)


CONFIG = to_dict(RunConfig("x"))
STATE = {
    "progress": {"step": 3, "best": {"metric": "r", "value": 0.1, "step": 2}},
    "optimizer": {"applied_steps": 3},
    "model": {},
}
ROLLBACKS = [dataclasses.asdict(Rollback(1, 2, "spikes", ((1, ("a",)),)))]


def places(values: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [above, *(place for name, value in inside for place in places(value, (*above, name)))]


def changed(values: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = values.copy()
    copy[place[0]] = changed(copy[place[0]], place[1:], value)
    return copy


@given(data=st.data(), value=ANYTHING)
@pytest.mark.parametrize(
    ("kind", "values"), [(RunConfig, CONFIG), (Described, STATE), (tuple[Rollback, ...], ROLLBACKS)]
)
def test_whatever_stands_anywhere_in_what_a_run_holds(kind: Any, values: Any, data: st.DataObject, value: Any) -> None:
    """It is refused, or what is read can be written and read again."""
    given_here = json.loads(json.dumps(changed(values, data.draw(st.sampled_from(places(values))), value)))
    try:
        found = typed(kind, given_here, where="here")
    except UserError:
        return
    plain = [dataclasses.asdict(one) for one in found] if isinstance(found, tuple) else dataclasses.asdict(found)
    assert typed(kind, json.loads(json.dumps(plain)), where="here") == found
