"""Reading production's configuration: includes, places, and what crossplane would get wrong is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.balancer.derive.nginx import baseline
from replay.balancer.derive.nginx_tree import read, walk, walk_all
from replay.balancer.derive.nginx_words import words_of
from replay.errors import UpstreamError
from tests.replay.balancer.derive.nginx_site import write


def test_includes_are_put_in_their_places(tmp_path: Path) -> None:
    site = write(tmp_path, "a 1;\ninclude one;\nb 2;", one="x {\n include two;\n}\ny;", two="z;")
    tree = read(site.path)
    places = {each.name: (Path(each.file).name, each.line) for each in walk_all(tree.http)}
    assert places == {
        "a": ("nginx.conf", 3),
        "x": ("one", 1),
        "z": ("two", 1),
        "y": ("one", 4),
        "b": ("nginx.conf", 5),
    }


def test_what_is_included_twice_is_two_things(tmp_path: Path) -> None:
    site = write(tmp_path, "p { include one; }\nq { include one; }", one="x;")
    one, two = (each for each in walk_all(read(site.path).http) if each.name == "x")
    assert one is not two
    assert len({one, two}) == 2


def test_patterns_are_sorted_and_may_match_nothing(tmp_path: Path) -> None:
    site = write(tmp_path, "include d_*;\ninclude none/*;", d_b="b;", d_a="a;")
    assert [each.name for each in walk_all(read(site.path).http)] == ["a", "b"]
    assert read(site.path).files[-2:] == (tmp_path, tmp_path / "none")


def test_data_is_not_walked(tmp_path: Path) -> None:
    site = write(tmp_path, "map $a $b { server 1; listen 2; }\ntypes { a b; }\nserver { location / { c; } }")
    assert [each.name for each, _ in walk(read(site.path).http)] == ["map", "types", "server", "location", "c"]


@pytest.mark.parametrize(
    ("text", "files", "message"),
    [
        ("include gone;", {}, r"nginx\.conf:3: No such file or directory: '.*/gone'$"),
        ("include one;", {"one": "include one;"}, r"/one: includes itself$"),
        ("a b", {}, r"nginx\.conf"),
        ("a {", {}, r"nginx\.conf"),
        ("}", {}, r'nginx\.conf:\d: unexpected "}"$'),
        ("a 'b", {}, r"nginx\.conf:3: unexpected end of file"),
        ("a '}b", {}, r"nginx\.conf:3: (unexpected end|nginx does not read on)"),
        ("a b\u00a0c;", {}, r"nginx\.conf:3: crossplane and nginx do not read this as the same: 'a b.c ;'"),
        ("a b}c;", {}, r"nginx\.conf"),
        ('a "#b";', {}, r"nginx\.conf:3: crossplane and nginx do not read this as the same: 'a #b ;'"),
        ('map $a $b { "#" 1; }', {}, r"nginx\.conf:3: crossplane cannot write '#' here"),
        ("map $a $b { if 1; }", {}, r"nginx\.conf:3: crossplane cannot write 'if' here"),
        ("content_by_lua_block{ return }", {}, r"nginx\.conf:3: "),
    ],
)
def test_refused_with_its_place(text: str, files: dict[str, str], message: str, tmp_path: Path) -> None:
    site = write(tmp_path, text, **files)
    with pytest.raises(UpstreamError, match=message) as caught:
        baseline(site.path)
    assert "\n" not in str(caught.value)


def test_not_text_is_refused(tmp_path: Path) -> None:
    site = write(tmp_path, "a b;")
    site.path.write_bytes(b"http { a \xff; }")
    with pytest.raises(UpstreamError, match=r"nginx\.conf: not UTF-8 text$"):
        read(site.path)


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match=r"gone\.conf: No such file"):
        read(tmp_path / "gone.conf")


@pytest.mark.parametrize(
    "text",
    [
        'log_format j escape=json \'{"a":"$b",\' \'"c":"it\\\'s"}\';',
        r'location ~ "^/\d{4}/(?<n>[^/;]+)$" { return 200 "a\tb\\n"; }',
        "return 200 'first\nsecond';",
        'if ($http_user_agent ~* "(bot|\\"spider)") { return 403; }',
        "if ( -f $request_filename ) { break; }",
        'if ($a = "") { return 204; }',
        'map $a:$b $c { default ""; "~^x y$" "${d}e"; \\include 1; }',
        r"rewrite ^/a\ b$ /c?d=${e}f permanent;",
        'add_header A "it\'s a \\"quote\\"";',
        "add_header A 'äöü €' always;",
        "split_clients $a $b { 0.5% x; * ''; }",
        "perl_set $x 'sub { my $r = shift; return \"a;b\"; }';",
        "rewrite_by_lua_block { -- it's\n ngx.say([[}]]) }",
        "ssl_client_hello_by_lua_block { local x = {} }",
    ],
)
def test_means_the_same_when_written_again(text: str, tmp_path: Path) -> None:
    site = write(tmp_path, text)
    written = baseline(site.path)
    (tmp_path / "again.conf").write_text(written)
    assert list(words_of(baseline(tmp_path / "again.conf"), "f")) == list(words_of(written, "f"))
    flat = [word for each in words_of(site.path.read_text(), "f") for word in each]
    again = [word for each in words_of(written, "f") for word in each]
    assert [word.strip("()") for word in flat if word.strip("()")] == [
        word.strip("()") for word in again if word.strip("()")
    ]
