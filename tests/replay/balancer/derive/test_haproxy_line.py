"""Words of a line: what HAProxy reads is read, and what is not replaced stays."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.balancer.derive.haproxy_line import LineError, rewrite, split_line
from replay.errors import UpstreamError
from tests.replay.balancer.derive.haproxy_harness import (
    ENVIRONMENT,
    check,
    derive,
    with_haproxy,
)

TRICKY = st.text(alphabet="ab \t'\"\\#${}[]*-x41\r\0nA._", max_size=40)


@settings(max_examples=300, deadline=None)
@given(st.one_of(TRICKY, st.text(max_size=60)).filter(lambda line: "\n" not in line))
def test_words_and_what_is_between_them_make_the_line(line: str) -> None:
    try:
        words = split_line(line, {"A": "b c"})
    except LineError:
        return
    assert rewrite(line, words, {}) == line
    assert rewrite(line, words, {index: line[word.start : word.end] for index, word in enumerate(words)}) == line
    gaps = zip([0, *(word.end for word in words)], [*(word.start for word in words), 0], strict=True)
    between = [line[start:end] for start, end in itertools.islice(gaps, len(words))]
    assert all(not gap.strip(" \t\n\v\f\r") for gap in between)
    assert all(word.start < word.end for word in words)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("  bind  :80\t# comment", ["bind", ":80"]),
        (r"acl a path a\ b\#c\\d \1 \t.", ["acl", "a", "path", r"a b#c\d", r"\1", "\t."]),
        (r'''log "a b"'c d' "it's" 'say "x" \n' ""''', ["log", "a bc d", "it's", r'say "x" \n', ""]),
        (r'"$A-${A}${B-d e}${C}\$A" $A', ["b c-b cd e$A", "$A"]),
        (r'"\x41\x4a" \x20', ["AJ", " "]),
        ("bind :80\r", ["bind", ":80"]),
        ("bind \r :80", ["bind"]),
        ("#", []),
    ],
)
def test_quotes_escapes_and_variables(line: str, values: list[str]) -> None:
    assert [word.value for word in split_line(line, {"A": "b c"})] == values


@pytest.mark.parametrize("line", ['a "b', "a 'b", r"a \xg0", '"$"', '"${A"', '"${A[1]}"', '"$1"', '"${A:-b}"'])
def test_what_haproxy_does_not_read_is_an_error(line: str) -> None:
    with pytest.raises(LineError):
        split_line(line, {"A": "b"})
    with pytest.raises(UpstreamError, match=r"^haproxy\.cfg:2: .*haproxy does not read it either$"):
        derive(f"global\n {line}\n")


@with_haproxy
def test_haproxy_reads_the_same_words(tmp_path: Path) -> None:
    """`.notice` prints its one word."""
    chance = random.Random(4)
    expected: dict[int, str] = {}
    lines: list[str] = []
    while len(lines) < 400:
        text = "".join(chance.choice("ab'\"\\ #${}[]-x41t.W") for _ in range(chance.randrange(1, 16)))
        try:
            words = split_line(f".notice {text}", {"WEB_ADDR": ENVIRONMENT["WEB_ADDR"], "W": "v w"})
        except LineError:
            continue
        if len(words) == 2 and not words[1].several and words[1].value.isprintable():
            lines.append(f".notice {text}\n")
            expected[len(lines)] = words[1].value
    (tmp_path / "words.cfg").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("W", "v w")
        printed = check(str(tmp_path / "words.cfg")).stderr
    found = {int(n): text for n, text in re.findall(r"words\.cfg:(\d+)\]: '(.*)'\.$", printed, re.MULTILINE)}
    assert found == expected


@with_haproxy
@pytest.mark.parametrize("word", ['"b', "'b", r"\xg0", '"$"', '"${A"', '"${A[1]}"', '"$1"', '"${A:-b}"'])
def test_haproxy_refuses_the_same_words(tmp_path: Path, word: str) -> None:
    with pytest.raises(LineError):
        split_line(f".notice {word}", {"A": "b"})
    (tmp_path / "line.cfg").write_text(f".notice {word}\n")
    assert re.search(r"parsing \[\S*line\.cfg:1\]", check(str(tmp_path / "line.cfg")).stderr)
