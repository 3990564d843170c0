"""The kernel's table: what frames requests, every kind of test, no true test missed, bounded whatever users write."""

from __future__ import annotations

import re
import time
import warnings

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent.select.automaton import (
    CLASSES_MAX,
    FOLD,
    HEAD_END,
    LENGTH_MAX,
    OUTPUTS_FLAG,
    REQUEST_LINE,
    STATE_MASK,
    STATES_MAX,
    STICKY,
    TESTS_MAX,
    Automaton,
    build,
)
from agent.select.criteria import Field, Head, Match, Or
from agent.select.exact import compile_criteria
from agent.select.language import parse
from replay.exchange import Request
from replay.http1 import framing, head_end, request_line
from tests.agent.select.trees import heads, requests

EMPTY = build([])
QUICK_S = 4.0  # 2 promised; machines that run tests are busy


def head(text: str) -> Head:
    leaf = parse(text)
    assert isinstance(leaf, Head)
    return leaf


def get(*lines: bytes, target: bytes = b"/", method: bytes = b"GET") -> bytes:
    return b"\r\n".join((method + b" " + target + b" HTTP/1.1", *lines, b"", b""))


def framed(*lines: bytes) -> int:
    """The outputs that frame the request, without the two that every one has."""
    walk = EMPTY.walk(get(*lines))
    assert walk.outputs & HEAD_END and walk.outputs & REQUEST_LINE
    return walk.outputs & ~HEAD_END & ~REQUEST_LINE


def exact(atom: Head, data: bytes) -> bool:
    parsed = request_line(data)
    assert parsed is not None
    return compile_criteria(atom, None)(Request(*parsed, data, b"", 0, None, 0, 0), None)


def taken(automaton: Automaton, data: bytes, atom: int = 0) -> bool:
    outputs = automaton.walk(data).outputs
    return bool(outputs & (1 << atom | FOLD))


def test_arrays_are_as_the_kernel_has_them() -> None:
    automaton = build([head("path:/a*")])
    assert len(automaton.classes) == 256 and max(automaton.classes) < automaton.classes_used <= CLASSES_MAX
    assert (automaton.next.itemsize, len(automaton.next)) == (2, STATES_MAX * CLASSES_MAX)
    assert (automaton.outputs.itemsize, len(automaton.outputs)) == (4, STATES_MAX)
    for entry in automaton.next:
        assert entry & STATE_MASK < automaton.states
        assert bool(entry & OUTPUTS_FLAG) == bool(automaton.outputs[entry & STATE_MASK])


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n"])
def test_head_ends_after_any_blank_line(end: bytes) -> None:
    data = b"GET / HTTP/1.1\r\nA: \r\r b\r" + end
    assert EMPTY.walk(data + b"body\n\n").head_bytes == len(data)
    assert [EMPTY.walk(data[:i]).head_bytes for i in range(len(data))] == [0] * len(data)


@given(st.text("\r\n a:", max_size=12))
def test_head_ends_where_the_parser_says(text: str) -> None:
    assert EMPTY.walk(text.encode()).head_bytes == max(head_end(text.encode()), 0)


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1",
        b"get  /  HTTP/1.0 \r \r",
        b"M-SEARCH * http/1.1",
        b"GET /a b HTTP/1.1",
        b"GET /\xff\tHTTP/1.1 HTTP/1.9",
        b"OPTIONS http://a HTTP/1.1",
    ],
)
def test_request_lines(line: bytes) -> None:
    assert request_line(line + b"\n") is not None
    assert EMPTY.walk(line + b"\n").outputs == EMPTY.walk(line + b"\r\n").outputs == REQUEST_LINE


@pytest.mark.parametrize(
    "line",
    [
        b"GET /",
        b"GET HTTP/1.1",
        b"GET  HTTP/1.1",
        b"GET / HTTP/2.0",
        b" GET / HTTP/1.1",
        b"GE(T / HTTP/1.1",
        b"GET / HTTP/1.1x",
        b"GET / HTTP/1.11",
        b"GET / HTTP/1.",
        b"/ HTTP/1.1",
        b"HTTP/1.1 200 OK",
        b"\x16\x03\x01\x02",
        b"",
    ],
)
def test_other_first_lines(line: bytes) -> None:
    assert not EMPTY.walk(line + b"\r\nGET / HTTP/1.1\r\n").outputs & REQUEST_LINE


@given(st.text("Ge /\r\t?x", max_size=8), st.sampled_from([" HTTP/1.1", " http/1.0 ", "HTTP/1.1", " HTTP/1.1\r"]))
def test_every_request_line_of_the_parser(text: str, version: str) -> None:
    line = (text + version).encode() + b"\n"
    assert request_line(line) is None or EMPTY.walk(line).outputs & REQUEST_LINE


@pytest.mark.parametrize("value", [b"0", b" 17", b"\t 0042 \t", b"123456789012345678"])
def test_length(value: bytes) -> None:
    for name in (b"Content-Length", b"content-length \t"):
        walk = EMPTY.walk(get(b"Host: 1", name + b":" + value, b"X: 5"))
        assert (walk.content_length, walk.length_names) == (int(value), 1)
        assert not walk.outputs & STICKY


def test_lengths_repeated_and_endless() -> None:
    assert EMPTY.walk(get(b"Content-Length: 1", b"content-length:1")).length_names == 2
    assert EMPTY.walk(get(b"Content-Length: " + b"9" * 99)).content_length == LENGTH_MAX
    assert framed(b"Content-Lengthy: 1", b"X-Content-Length: 2", b"X: Content-Length: 3") == 0


@pytest.mark.parametrize(
    "line",
    [b"Content-Length:" + value for value in (b"", b" ", b"+1", b"-1", b"1,1", b"1 1", b"0x1", b"1a", b"\xb2", b"\r1")]
    + [b"Transfer-Encoding: chunked", b"UPGRADE :x", b"expect:\t100-continue"],
)
def test_heads_behind_which_streams_cannot_be_followed(line: bytes) -> None:
    assert framed(line, b"A: b") & STICKY


def test_sticky_and_fold_need_their_place() -> None:
    assert framed(b"X-Upgrade: 1", b"X: Expect: 1", b"Upgrade-Insecure-Requests: 1", b"A: b c") == 0
    assert framed(b"A: b", b" c") == framed(b"A: b", b"\tc") == framed(b"A: b", b" ") == FOLD
    assert EMPTY.walk(get(target=b"a:443", method=b"CONNECT")).outputs & STICKY
    assert not EMPTY.walk(get(method=b"CONNECTS")).outputs & STICKY


@given(st.text("0123456789 \t,+\rx", max_size=6))
def test_lengths_are_those_of_the_parser_unless_sticky(value: str) -> None:
    data = get(b"Content-Length:" + value.encode())
    walk = EMPTY.walk(data)
    if not walk.outputs & STICKY:
        assert framing(data.lower()) == (1, walk.content_length)


TRUE = [
    ("method:GET", get()),
    ("method:~^P", get(method=b"PURGE")),
    ("method:~$", get()),
    ("host:a.example", get(b"hOST : A.example:80 ")),
    ("host:a.example", get(target=b"http://a.Example:1/x")),
    ("host:a.example", get(target=b"http://a.Example")),
    ("host:*.example", get(b"Host: a.example")),
    ("host:[::1]", get(b"Host: [::1]:80")),
    ("host:[::1]", get(b"Host: [::1]junk")),
    ("host:~^[^.]+$", get(b"Host: \r\tLOCALhost:80")),
    (r"host:~^a\Z", get(target=b"http://a\r/x"[:8] + b"/x")),
    ("host:~A", get(b"Host: bab")),
    ('host:""', get(b"Host:")),
    ("path:/api", get(target=b"/api?x")),
    ("path:/api", get(target=b"/api#x")),
    ("path:/api", get(target=b" /api ")),
    ("path:/", get(target=b"http://a?x")),
    ("path:~^/$", get(target=b"http://a")),
    ("path:/a", get(target=b"http://a:1/a")),
    ("path:~^", get(target=b"http://a:1/a")),
    ('path:""', get(target=b"?x")),
    ('path:"/a b"', get(target=b"/a b")),
    ('path:~"b  c$"', get(target=b"/a b  c?x")),
    ("path:/*.jpg", get(target=b"/a/b.jpg.jpg")),
    ("path:a:443", get(target=b"a:443", method=b"CONNECT")),
    ("query:q", get(target=b"/?a&q")),
    ("query:q=1", get(target=b"/?q=2&q=1")),
    ("query:q=1", get(target=b"/#?q=1#x")),
    ("query:q=~^$", get(target=b"/?q&x")),
    ('query:q=""', get(target=b"/?q=&x")),
    ("query:q=a=?b", get(target=b"/?q=a=?b")),
    ("header:x-a", get(b"X-A:")),
    ("header:x-a=b", get(b"X-a\t:\t b \t\r")),
    ("header:x-a=~^b$", get(b"x-a:1", b"x-a:b")),
    ('header:x-a=""', get(b"x-a: ")),
    ("header:x-a=~^$", get(b"x-a:  ")),
    ("header:x-a=~$^$", get(b"x-a:  ")),
    ("header:x-a=\xe9*", get(b"x-a: \xe9t\xe9")),
    (r"header:x-a=~a\rb", get(b"x-a: a\rb")),
    ("header:x-a=a*b", get(b"x-a: ab")),
    ("user-agent:~Chrome/1[2-9]", get(b"User-Agent: Mozilla/5.0 Chrome/126.0 Safari")),
    ("cookie:id", get(b"Cookie: a=b;id =1")),
    ("cookie:id=1", get(b"Cookie: a=b", b"cookie:id=1")),
    ("cookie:id=1", get(b'Cookie: id="1" ; x')),
    ("cookie:id=~^.$", get(b'Cookie: id="; x=y')),
    ("cookie:id=a=b", get(b"Cookie: id=a=b")),
    ('cookie:id=""', get(b"Cookie: id=")),
]


@pytest.mark.parametrize(("text", "data"), TRUE)
def test_what_is_true_is_taken(text: str, data: bytes) -> None:
    atom = head(text)
    assert exact(atom, data)
    walk = build([atom]).walk(data)
    assert walk.outputs & 1 and walk.head_bytes == len(data)


FALSE = [
    ("method:GET", get(method=b"GETS")),
    ("method:GET", get(b"GET: GET", method=b"POST", target=b"/GET")),
    ("method:~^.{3}$", get(method=b"POST")),
    ("host:a.example", get(b"Host: aa.example", b"X-Host: a.example")),
    ("host:a.example", get(b"Host: a.example.com", target=b"/a.example")),
    ("host:a.example", get(target=b"http://b.example/http://a.example/")),
    ("host:~8", get(b"Host: a:8080")),
    ("host:~[^a-z.]", get(b"Host: a.example:80")),
    ("path:/api", get(b"/api: /api", target=b"/api/")),
    ("path:/api", get(target=b"/ap?/api")),
    ("path:/", get(target=b"http://a/b")),
    ("path:~HTTP|/1", get(target=b"/a")),
    ("path:~[^a/]", get(target=b"/a?b")),
    ("path:/a/*.jpg", get(target=b"/a/b.jpg.png")),
    ("query:q", get(target=b"/q?qq&a=q&aq=1#q")),
    ("query:q=1", get(target=b"/?q=11&q=2&q")),
    ("query:q=~[^1]", get(target=b"/?q=1&x=2")),
    ("header:x-a", get(b"x-ab: 1", b"ax-a: 1", b"b: x-a: 1")),
    ("header:x-a=b", get(b"x-a: bb", b"x-a: b b", b"x-a: B", b"y: b")),
    ("header:x-a=~[^b]", get(b"x-a:  b", b"y: a")),
    ('header:x-a=""', get(b"x-a: b")),
    ("header:x-a=~.", get(b"x-a: ")),
    ("user-agent:~Chrome/1[2-9]", get(b"User-Agent: Mozilla/5.0 Chrome/99.0", b"x: Chrome/126")),
    ("cookie:id", get(b"Cookie: id; ID=1; aid=2; x=id=3", b"X-Cookie: id=1")),
    ("cookie:id=1", get(b"Cookie: id=11; x=1; id=")),
    ("cookie:id=~[^1]", get(b"Cookie: id=1; x=2")),
    ("header:x-a=~$^", get(b"x-a: b")),
]


@pytest.mark.parametrize(("text", "data"), FALSE)
def test_what_is_false_is_left(text: str, data: bytes) -> None:
    atom = head(text)
    assert not exact(atom, data)
    automaton = build([atom])
    assert not automaton.walk(data).outputs & 1
    assert automaton.coarser == {}


def test_tests_have_their_own_bits() -> None:
    automaton = build([head(t) for t in ("method:GET", "path:/a", "path:~a$", "header:x", "header:x=1", "cookie:x")])
    assert automaton.walk(get(b"x: 1", target=b"/a")).outputs & 0xFF == 0b011111
    assert automaton.walk(get(b"Cookie: x=", target=b"/ba", method=b"PUT")).outputs & 0xFF == 0b100100
    assert automaton.coarser == {}


@pytest.mark.parametrize("field", [Field.METHOD, Field.HOST, Field.PATH])
def test_what_every_request_has_is_always_present(field: Field) -> None:
    assert taken(build([Head(field, "", Match.PRESENT)]), b"G")


def test_too_many() -> None:
    with pytest.raises(ValueError, match="room for 8 tests"):
        build([head("path:/")] * (TESTS_MAX + 1))
    with pytest.raises(ValueError, match="4096 states"):
        build([], STATES_MAX + 1)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"a(?=b)", "looks ahead or behind"),
        (r"a(?!b)", "looks ahead or behind"),
        (r"(?<!x)b", "looks ahead or behind"),
        (r"(a)b\1", "refers to a group"),
        (r"(a)?b(?(1)a|c)", ""),
        (r"\bab\b", "looks at the bounds of words"),
        (r"ab{1,200}", "counts above 64"),
        (r"(?>a+)b", ""),
        (r"a++b", ""),
    ],
)
def test_parts_left_out_are_named(pattern: str, reason: str) -> None:
    automaton = build([Head(Field.HEADER, "x", Match.REGEX, pattern)])
    assert reason in automaton.coarser.get(0, "") and bool(reason) == bool(automaton.coarser)
    for value in ("ab", "aba", "b", "aab", "bc", "x", "a-ab-a"):
        data = get(b"x: " + value.encode())
        assert taken(automaton, data) or not re.search(pattern, value)
    assert not taken(automaton, get(b"x: yz", b"y: ab"))


W = range(80)
WORDS = [f"w{i * 7919 % 9973}" for i in W]
EVIL: dict[str, tuple[list[str], bytes]] = {  # tests, and a request for which all are true
    "window": (['header:x=~"(a|b)*a(a|b){20}"'], get(b"x: c" + b"ab" * 12)),
    "long window": (["path:~.*a.{200}"], get(target=b"/a" + b"b" * 200)),
    "repeated repeats": (
        ['header:x=~"((a?){64}){64}b"', 'header:x=~"(((a?){9}){9}){9}b"', 'header:x=~"(a{300}){300}|b"'],
        get(b"x: b"),
    ),
    "ends": (['host:~"((a|$|]){20}){20}"'] * 8, get(b"Host: " + b"a" * 400)),
    "empty": (['header:x=~"((a?){20}){20}b"'] * 8, get(b"x: aab")),
    "gaps": (
        [f"header:x=~{''.join(f'.*{chr(97 + i * j % 26)}' for i in W[:60])}" for j in W[1:9]],
        get(b"x: " + bytes(range(97, 123)) * 60),
    ),
    "globs": (
        [f"path:*{'*'.join('abcdefgh'[i:] + 'abcdefgh'[:i])}*" for i in W[:8]],
        get(target=b"/" + b"abcdefgh" * 2),
    ),
    "words": (
        [f'query:q{j}=~"({"|".join(WORDS)})+"' for j in W[:8]],
        get(target=b"/?" + b"&".join(b"q%d=w7919" % j for j in W[:8])),
    ),
    "windows": ([f"header:x=~a.{{{i}}}b" for i in W[18:26]], get(b"x: " + b"a" * 26 + b"b" * 26)),
    "long values": ([f"header:{'x' * 200}={'abcd' * 800}"] * 8, get(b"x" * 200 + b":" + b"abcd" * 800)),
    "long names": (
        [f"header:{chr(97 + i) * 4000}" for i in W[:8]],
        get(*(bytes([97 + i]) * 4000 + b":" for i in W[:8])),
    ),
    "nested": (['header:x=~"^' + "(" * 60 + "a" + ")*" * 60 + '"'], get(b"x: a")),
}


@pytest.mark.parametrize(("texts", "data"), EVIL.values(), ids=EVIL)
def test_whatever_users_write_is_quick_and_taken(texts: list[str], data: bytes) -> None:
    atoms = [head(text) for text in texts]
    begin = time.perf_counter()
    automaton = build(atoms)
    assert time.perf_counter() - begin < QUICK_S
    assert automaton.states <= STATES_MAX
    assert automaton.walk(data).outputs & 0xFF == (1 << len(atoms)) - 1
    assert automaton.walk(data).head_bytes == len(data)


def test_costly_values_go_first_and_others_stay() -> None:
    texts = ('header:x=~"(a|b)*a(a|b){20}"', "path:/api/*", "header:y=1", "header:z=~^1")
    automaton = build([head(text) for text in texts])
    assert set(automaton.coarser) == {0} and "only whether there is such a header" in automaton.coarser[0]
    assert automaton.walk(get(b"x: 1", b"y: 2", b"z: 2", target=b"/ap")).outputs & 0xF == 0b0001
    assert automaton.walk(get(b"y: 1", b"z: 1", target=b"/api/")).outputs & 0xF == 0b1110


@pytest.mark.parametrize("max_states", [0, 80, 100, 105, 120, 160, 250])
def test_any_number_of_states_is_kept_to(max_states: int) -> None:
    atoms = [head(t) for t in ("path:~^/[a-c]+$", "header:x-b=ab*c", "header:x-b=abcd", "cookie:id=1")]
    automaton = build(atoms, max_states)
    assert automaton.states <= max(max_states, EMPTY.states + 8)  # one byte more
    assert automaton.walk(get(b"X-B: abcd", b"Cookie: id=1", target=b"/abc")).outputs & 0b1101 == 0b1101
    left_out = [i for i, reason in automaton.coarser.items() if "left out" in reason]
    assert all(automaton.walk(b"G").outputs >> i & 1 for i in left_out)
    assert (len(left_out) == 4) == (max_states <= 80)


def test_more_bytes_told_apart_than_there_are_classes() -> None:
    text = "".join(map(chr, [*range(48, 63), *range(64, 123)]))
    automaton = build(
        [Head(Field.PATH, "", Match.EQUAL, "/" + text), Head(Field.HEADER, "x", Match.REGEX, "[\xa0-\xff]")]
    )
    assert automaton.classes_used == CLASSES_MAX and automaton.coarser == {}
    assert taken(automaton, get(target=b"/" + text.replace("?", "").encode()))
    assert not taken(automaton, get(target=b"/" + text.replace("?", "")[1:].encode()))
    assert not taken(automaton, get(b"x: abc"), 1)
    assert automaton.walk(get(b"Content-Length: 1234567890")).content_length == 1234567890


_ITEM = st.sampled_from(
    [
        *"abAB1_ .",
        r"\w",
        r"\W",
        r"\d",
        r"\s",
        "[ab]",
        "[^a]",
        "[A-Z]",
        r"[^\W\d]",
        "\xe9",
        r"\xc9",
        r"\.",
        "\u017f",
        "[\xb5-\xff]",
    ]
)
_ANCHOR = st.sampled_from(["^", "$", r"\A", r"\Z", r"\b", r"\B", "(?=a)", "(?!b)", "(?<=a)", "(?<!b)"])
_REPEAT = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{1,3}", "{,2}", "{2,}", "++", "?+"])
_FLAGS = st.sampled_from(["", "", "(?i)", "(?s)", "(?m)", "(?a)", "(?ai)"])


def _larger(child: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    groups = st.sampled_from(["({})", "(?:{})", "(?>{})", "(?i:{})", "(?-i:{})", r"({})\1", "(?a:{})"])
    return (
        st.lists(child, max_size=4).map("".join)
        | st.lists(child, min_size=2, max_size=3).map("|".join).map("(?:{})".format)
        | st.tuples(groups, child).map(lambda pair: pair[0].replace("{}", pair[1]))
        | st.tuples(child, _REPEAT).map(lambda pair: f"(?:{pair[0]}){pair[1]}")
    )


patterns = st.tuples(_FLAGS, st.recursive(_ITEM | _ANCHOR, _larger, max_leaves=8)).map("".join)
plain_patterns = st.recursive(
    _ITEM | st.sampled_from("^$"), lambda child: st.lists(child, max_size=4).map("".join), max_leaves=8
)
texts = st.text("aAbB1_ .\xe9\xc9\xb5s-", max_size=8)
odd_texts = st.text('aAb \r\t":;[]=/?#&@', max_size=8)
PLACES = [
    (Field.HEADER, "x", "GET / HTTP/1.1\r\nx: {}\r\n\r\n"),
    (Field.COOKIE, "x", "GET / HTTP/1.1\r\nCookie: x={}; y\r\n\r\n"),
    (Field.HOST, "", "GET / HTTP/1.1\r\nHost: {}:80\r\n\r\n"),
    (Field.HOST, "", "GET http://{}/ HTTP/1.1\r\n\r\n"),
    (Field.PATH, "", "GET /{} HTTP/1.1\r\n\r\n"),
    (Field.PATH, "", "GET http://a/{}?a HTTP/1.1\r\n\r\n"),
    (Field.QUERY, "x", "GET /?x={}&y HTTP/1.1\r\n\r\n"),
]


def _accepts(pattern: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(pattern)
    except (re.error, Warning):
        return False
    return True


@settings(max_examples=400, deadline=None)
@given(patterns, st.lists(texts | odd_texts, min_size=1, max_size=8), st.sampled_from(PLACES))
def test_regular_expressions_are_never_missed(pattern: str, values: list[str], place: tuple[Field, str, str]) -> None:
    assume(_accepts(pattern))
    field, name, form = place
    atom = Head(field, name, Match.REGEX, pattern)
    automaton = build([atom])
    for value in values:
        data = form.format(value).encode("latin-1")
        assert taken(automaton, data) or not exact(atom, data)


@settings(max_examples=200, deadline=None)
@given(plain_patterns, st.lists(texts, min_size=1, max_size=8))
def test_plain_regular_expressions_are_exact_in_headers(pattern: str, values: list[str]) -> None:
    atom = Head(Field.HEADER, "x", Match.REGEX, pattern)
    automaton = build([atom])
    for value in values:
        data = b"GET / HTTP/1.1\r\nx: " + value.strip().encode("latin-1") + b"\r\n\r\n"
        assert taken(automaton, data) == exact(atom, data)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([*Field]),
    st.sampled_from([*Match]),
    st.text('ab:[]*"/', max_size=4) | st.sampled_from(["^$", "^", "$", "a$", "^a", "[^a]$", "b]$", "^.$"]),
    st.lists(st.text("a:h/?#&=@[] \r", max_size=10) | st.just("/"), min_size=1, max_size=4),
    st.lists(st.text('a=;:" \r\n\t[]', max_size=10), min_size=1, max_size=3),
    st.sampled_from(["a", "host", "cookie", "Host ", "COOKIE\t"]),
)
def test_oddly_written_heads(
    field: Field, match: Match, value: str, targets: list[str], values: list[str], header: str
) -> None:
    assume(match is not Match.REGEX or _accepts(value))
    name = "a" if field in (Field.HEADER, Field.COOKIE, Field.QUERY) else ""
    atom = Head(field, name, match, "" if match is Match.PRESENT else value)
    automaton = build([atom])
    for target in (*targets, *(f"http://{target}" for target in targets)):
        lines = "\n".join(f"{header}:{value}" for value in values)
        data = f"GET {target} HTTP/1.1\r\n{lines}\r\n\r\n".encode()
        data = data[: head_end(data)]
        if request_line(data) is not None:
            assert taken(automaton, data) or not exact(atom, data)


@st.composite
def tried(draw: st.DrawFn) -> tuple[list[Head], list[Request]]:
    atoms = draw(st.lists(heads(), min_size=2, max_size=TESTS_MAX))
    return atoms, draw(st.lists(requests(Or(tuple(atoms))), min_size=1, max_size=4))


@settings(max_examples=300, deadline=None)
@given(tried())
def test_no_true_test_is_missed(case: tuple[list[Head], list[Request]]) -> None:
    atoms, asked = case
    automaton = build(atoms)
    for request in asked:
        walk = automaton.walk(request.head)
        assert walk.head_bytes == len(request.head) and walk.outputs & REQUEST_LINE
        for i, atom in enumerate(atoms):
            assert walk.outputs & (1 << i | FOLD) or not compile_criteria(atom, None)(request, None)


@settings(max_examples=100, deadline=None)
@given(tried(), st.integers(0, 400))
def test_no_true_test_is_missed_with_few_states(case: tuple[list[Head], list[Request]], max_states: int) -> None:
    atoms, asked = case
    automaton = build(atoms, max_states)
    for request in asked:
        outputs = automaton.walk(request.head).outputs
        for i, atom in enumerate(atoms):
            assert outputs & (1 << i | FOLD) or not compile_criteria(atom, None)(request, None)
