"""Changes of a tree, and that the texts differ by them and by nothing else."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.balancer.derive.change import unexplained
from replay.balancer.derive.nginx import baseline
from replay.balancer.derive.nginx_edits import Edits, Reason, Texts
from replay.balancer.derive.nginx_edits import write as write_texts
from replay.balancer.derive.nginx_tree import Statement, Tree, read
from replay.balancer.derive.nginx_words import words_of
from replay.errors import UpstreamError
from tests.replay.balancer.derive.nginx_site import write

FILE = "/etc/nginx/nginx.conf"


def tree(*statements: Statement) -> Tree:
    return Tree(Statement("", (), statements, FILE, 0), ())


def statement(name: str, *args: str, block: tuple[Statement, ...] | None = None) -> Statement:
    return Statement(name, args, block, FILE, 7)


def exact(texts: Texts) -> Texts:
    assert unexplained(texts.source.split("\n"), texts.derived.split("\n"), texts.changes) == []
    return texts


def test_nothing_changed() -> None:
    texts = exact(write_texts(tree(statement("a", "b c"), statement("d", block=())), Edits()))
    assert texts.source == texts.derived == "a 'b c';\nd {\n}\n"
    assert texts.changes == ()


def test_arguments_of_a_directive_and_of_a_block() -> None:
    inner = statement("x", "1")
    outer = statement("b", "1", block=(inner,))
    edits = Edits()
    edits.change(outer, ("2",), Reason.SERVER)
    edits.change(inner, ("2",), Reason.SERVER)
    edits.change(inner, ("2", "3"), Reason.LISTEN)
    texts = exact(write_texts(tree(outer), edits))
    assert texts.derived == "b 2 {\n    x 2 3;\n}\n"
    assert [(each.line, each.before, each.after) for each in texts.changes] == [
        (1, "b 1 {", "b 2 {"),
        (2, "    x 1;", "    x 2 3;"),
    ]
    assert texts.changes[1].reason == f"{Reason.SERVER}; {Reason.LISTEN}"
    assert texts.changes[1].file == f"{FILE}:7, in one file"


def test_taken_out_stays_out() -> None:
    gone = statement("g", block=(statement("x"), statement("y", block=(statement("z"),))))
    leaf = statement("l")
    edits = Edits()
    edits.remove(gone, Reason.NO_TRAFFIC)
    edits.remove(leaf, Reason.TWICE)
    edits.change(leaf, ("1",), Reason.SERVER)
    texts = exact(write_texts(tree(statement("a"), gone, leaf, statement("b")), edits))
    assert texts.derived == "a;\nb;\n"
    assert texts.changes[0].before == "g {\n    x;\n    y {\n        z;\n    }\n}"
    assert [each.after for each in texts.changes] == [None, None]


def test_one_becomes_several() -> None:
    listen = statement("listen", "80")
    edits = Edits()
    edits.replace(listen, (Statement("listen", ("1",)), Statement("listen", ("2",))), Reason.LISTEN)
    texts = exact(write_texts(tree(statement("s", block=(listen,))), edits))
    assert texts.changes[0].after == "    listen 1;\n    listen 2;"


def test_added_ones_are_grouped_by_reason() -> None:
    block = statement("http", block=(statement("x"),))
    whole = tree(block)
    edits = Edits()
    edits.add(whole.root, "pid", "p", reason=Reason.RUN_FILE)
    edits.add(block, "a", reason=Reason.TEMPORARY)
    edits.add(block, "b", reason=Reason.TEMPORARY)
    edits.add(block, "c", reason=Reason.VIA)
    texts = exact(write_texts(whole, edits))
    assert texts.derived == "pid p;\nhttp {\n    a;\n    b;\n    c;\n    x;\n}\n"
    assert [(each.line, each.after) for each in texts.changes] == [(0, "pid p;"), (1, "    a;\n    b;"), (1, "    c;")]


def test_the_same_arguments_are_no_change() -> None:
    same = statement("a", "b")
    edits = Edits()
    edits.change(same, ("b",), Reason.SERVER)
    assert write_texts(tree(same), edits).changes == ()


def test_a_change_that_cannot_be_written_is_refused() -> None:
    edits = Edits()
    bad = statement("a", "b")
    edits.change(bad, ("#c",), Reason.SERVER)
    with pytest.raises(UpstreamError, match=r"nginx\.conf, in one file:2: nginx does not read on"):
        write_texts(tree(bad), edits)


# Random trees. What crossplane can write comes through whole; what it cannot is refused, never changed.

NAMES = st.from_regex(r"x_[a-z]{1,5}", fullmatch=True)
PLAIN = st.text(alphabet="ab1./:-_$~^=*, é;{}'\n\t", max_size=6)
WILD = st.text(alphabet="ab #$\\{}\"';()\u00a0\n\t\r", max_size=6)


def nested(words: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def leaf(parts: tuple[str, list[str]]) -> str:
        return " ".join([parts[0], *map(quote, parts[1])]) + ";"

    def block(parts: tuple[str, list[str], list[str]]) -> str:
        return " ".join([parts[0], *map(quote, parts[1])]) + " {\n" + "\n".join(parts[2]) + "\n}"

    args = st.lists(words, max_size=3)
    return st.recursive(
        st.tuples(NAMES, args).map(leaf),
        lambda inner: st.tuples(NAMES, args, st.lists(inner, max_size=4)).map(block),
        max_leaves=12,
    )


def quote(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(st.lists(nested(PLAIN), max_size=4))
def test_trees_in_which_nothing_applies_come_through(parts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        site = write(Path(directory), "\n".join(parts))
        derived = site.derive({})
        before = list(words_of(site.path.read_text(), "f"))
        assert list(words_of(baseline(site.path), "f")) == before
        assert unexplained(baseline(site.path).split("\n"), derived.text.split("\n"), derived.changes) == []
        assert all(change.before is None for change in derived.changes)
        kept = [each for each in words_of(derived.text, "f") if each[0].startswith("x_")]
        assert kept == [each for each in before if each[0].startswith("x_")]


@given(st.lists(nested(WILD), max_size=4))
def test_any_tree_is_the_same_or_refused(parts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        site = write(Path(directory), "\n".join(parts))
        before = list(words_of(site.path.read_bytes().decode(), "f"))
        try:
            written = baseline(site.path)
        except UpstreamError:
            return
        assert list(words_of(written, "f")) == before
        assert len(read(site.path).root.block or ()) == 2
