"""Numbers for names."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from replay.compare.names import Names


def test_numbers_are_stable_over_columns() -> None:
    names = Names(10)
    assert names.codes(pa.array(["b", "a", "b", None])).tolist() == [1, 2, 1, 3]
    assert names.codes(pa.array(["a", "c", ""])).tolist() == [2, 4, 3]
    assert names.all == ["other", "b", "a", "", "c"]


def test_an_empty_column() -> None:
    assert Names(10).codes(pa.array([], pa.string())).tolist() == []


def test_what_does_not_fit_is_other() -> None:
    names = Names(2)
    assert names.codes(pa.array(["a", "b", "c", "a", "d"])).tolist() == [1, 2, 0, 1, 0]
    assert len(names.all) == 3


def test_names_cannot_control_the_terminal() -> None:
    names = Names(10)
    assert names.codes(pa.array(["\x1b[31m", "\x9b[31m"])).tolist() == [1, 1]
    assert names.all[1] == "?[31m"


@given(st.lists(st.text(max_size=5), max_size=30), st.integers(1, 8))
def test_any_names_get_numbers_within_the_limit(given_names: list[str], limit: int) -> None:
    names = Names(limit)
    codes = names.codes(pa.array(given_names, pa.string())).tolist()
    assert len(names.all) <= limit + 1
    for name, code in zip(given_names, codes, strict=True):
        assert code == names.number(name)
        assert code == 0 or "".join(c if c.isprintable() else "?" for c in name) == names.all[code]
