"""Adding up reports."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.merge import add_up

leaves = st.integers(-1000, 1000) | st.just("text") | st.lists(st.integers(0, 9), min_size=3, max_size=3)


def reports() -> st.SearchStrategy[list[dict[str, object]]]:
    """Reports of one shape, as workers of one version make them."""
    kinds = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["number", "list", "text", "section"]))

    def report(kind: dict[str, str]) -> st.SearchStrategy[dict[str, object]]:
        number = st.integers(0, 1000)
        values: dict[str, st.SearchStrategy[object]] = {
            "number": number,
            "list": st.lists(number, min_size=3, max_size=3),
            "text": st.text(max_size=3),
            "section": st.fixed_dictionaries({"x": number, "y": st.text(max_size=2)}),
        }
        return st.fixed_dictionaries({key: values[name] for key, name in kind.items()})

    return kinds.flatmap(lambda kind: st.lists(report(kind), max_size=4))


def test_numbers_lists_and_sections() -> None:
    one = {"n": 1, "s": 0.5, "list": [1, 2], "deep": {"a": 1, "b": {"c": 2}}, "problem": "disk", "final": True}
    other = {"n": 2, "s": 0.25, "list": [10, 20], "deep": {"a": 10, "b": {"c": 20}, "new": 5}, "problem": ""}
    assert add_up([one, other]) == {
        "n": 3, "s": 0.75, "list": [11, 22], "deep": {"a": 11, "b": {"c": 22}, "new": 5}, "final": 1,
    }  # fmt: skip
    assert add_up([]) == {}
    assert add_up([{}, {"a": {}}, {"a": {"b": 1}}]) == {"a": {"b": 1}}


@given(reports())
def test_the_order_and_the_grouping_do_not_matter(given: list[dict[str, object]]) -> None:
    whole = add_up(given)
    assert add_up(reversed(given)) == whole
    assert add_up([add_up(given[:2]), add_up(given[2:])]) == whole


@given(reports())
def test_reports_are_left_as_they_are(given: list[dict[str, object]]) -> None:
    before = repr(given)
    add_up(given)
    assert repr(given) == before
