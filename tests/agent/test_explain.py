"""`shadowtap explain`: where each part of the criteria is decided, and what the kernel needs for its part."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.capture.layout import TESTS_MAX
from agent.errors import ConfigError
from agent.explain import explain
from tests.agent.select.test_geo import DE, US, write

CAPTURE = "capture: {interface: lo, ports: [80]}\n"
LARGE = '"(a|b)*a(a|b){14}"'  # its table has a state for each of the last 15 characters' forms


def explained(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "f.yaml"
    path.write_text(CAPTURE + text)
    return explain(path)


def of_shadow(lines: list[str], name: str) -> dict[str, str]:
    """The lines of one shadow by their first word."""
    at = next(i for i, line in enumerate(lines) if re.fullmatch(rf"shadow {name}( \(disabled\))?", line))
    found = {}
    for line in lines[at + 1 :]:
        if not line.startswith("  "):
            break
        word, said = line[2:12].strip(), line[14:]
        found[word or "user space"] = said
    return found


def kernel(tmp_path: Path, criteria: str, rest: str = "") -> str:
    """What the kernel sees of the criteria of the only shadow."""
    return of_shadow(explained(tmp_path, f"shadows: {{a: {{criteria: '{criteria}'}}}}\n{rest}"), "a")["kernel"]


def places(percentage: str) -> tuple[int, ...]:
    """The numbers behind "places", however they are grouped."""
    words = percentage.partition(", places ")[2]
    return tuple(int(re.sub(r"[ _,]", "", number)) for number in re.split(" to | of ", words))


def test_the_whole_of_it(tmp_path: Path) -> None:
    lines = explained(
        tmp_path, "shadows: {a: {percentage: 5, criteria: 'cidr:10.0.0.0/8 and header:X-Test and not path:/api/*'}}\n"
    )
    assert lines[:2] == [str(tmp_path / "f.yaml"), "shadow a"]
    assert lines[2].startswith("  percentage  5 % by connection: in the kernel, places ")
    assert places(lines[2]) == (0, 50_000, 1_000_000)
    assert lines[3:7] == [
        "  criteria    cidr:10.0.0.0/8 and header:x-test and not path:/api/*",
        "  kernel      (cidr:10.0.0.0/8 and header:x-test and ?)",
        "  user space  decides exactly on what the kernel lets through",
        "tables in the kernel (twice, so that a change can be written beside what decides)",
    ]
    assert re.fullmatch(r"  addresses   1 test\(s\), [1-9]\d* IPv4 and \d+ IPv6 prefixes, about \d+\.\d MiB", lines[7])
    assert re.fullmatch(
        r"  heads       1 test\(s\), an automaton of \d+ states and \d+ byte classes, \d+ KiB", lines[8]
    )
    assert lines[9].startswith("estimated cost of a segment")
    assert all(re.search(r"  \d+ ns\b", line) for line in lines[10:])


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        ("header:X-Test", "header:x-test"),
        ("cidr:10.0.0.0/8", "cidr:10.0.0.0/8"),
        ("not cidr:10.0.0.0/8", "not cidr:10.0.0.0/8"),
        ("not not header:X", "header:x"),
        ("header:X or cidr:10.0.0.0/8", "(header:x or cidr:10.0.0.0/8)"),
        ("cookie:beta=1 and method:GET", "(cookie:beta=1 and method:GET)"),
        ("cidr:10.0.0.0/8 and not cidr:10.1.0.0/16", "(cidr:10.0.0.0/8 and not cidr:10.1.0.0/16)"),
        ("not (cidr:10.0.0.0/8 or cidr:11.0.0.0/8)", "not (cidr:10.0.0.0/8 or cidr:11.0.0.0/8)"),
        ("not header:X", "?"),
        ("not (header:X or cidr:10.0.0.0/8)", "(? and not cidr:10.0.0.0/8)"),
        ("header:Y and not header:X", "(header:y and ?)"),
        ("not random", "not random"),
    ],
)
def test_what_the_kernel_takes_for_true_is_a_question_mark(tmp_path: Path, criteria: str, expected: str) -> None:
    assert kernel(tmp_path, criteria) == expected


def test_without_criteria_nothing_is_left_to_decide(tmp_path: Path) -> None:
    lines = explained(tmp_path, "shadows: {a: {}}\n")
    said = of_shadow(lines, "a")
    assert said.pop("percentage").startswith("100 % by connection: in the kernel")
    assert said == {"criteria": "none: every request"}
    assert "  heads       none: connections are taken or left as a whole" in lines
    assert any(line.startswith("  addresses   0 test(s), 0 IPv4 and 0 IPv6 prefixes") for line in lines)
    assert not any("by address" in line or "by head" in line for line in lines)


def test_the_costs_are_of_what_is_there(tmp_path: Path) -> None:
    by = {
        "header:X": {"request unwanted by head", "answer to it", "request copied"},
        "cidr:10.0.0.0/8": {"unwanted by address"},
        "header:X or cidr:10.0.0.0/8": {
            "request unwanted by head",
            "answer to it",
            "request copied",
            "unwanted by address",
        },
        "not header:X": set(),
    }
    for criteria, expected in by.items():
        lines = explained(tmp_path, f"shadows: {{a: {{criteria: '{criteria}'}}}}\n")
        at = next(i for i, line in enumerate(lines) if line.startswith("estimated cost"))
        said = {line[2:].partition("  ")[0].strip() for line in lines[at + 1 :]}
        assert said == expected | {"outside the percentage", "copied"}, criteria


def test_every_shadow_has_its_part_and_one_may_be_off(tmp_path: Path) -> None:
    lines = explained(
        tmp_path,
        """
shadows:
  one: {percentage: 40, criteria: "cidr:10.0.0.0/8", exclusive: ab, sample_by: client}
  two: {percentage: 2.5, exclusive: ab, sample_by: client, enabled: false}
  three: {criteria: "header:X-Test and not cidr:10.0.0.0/8", sample_by: "header:X-User"}
  four: {sample_by: request, percentage: 0}
""",
    )
    shadows = [line for line in lines if line.startswith("shadow ")]
    assert shadows == ["shadow one", "shadow two (disabled)", "shadow three", "shadow four"]
    for name, taken, at in (
        ("one", "40 % by client: in the kernel", (0, 400_000)),
        ("two", "2.5 % by client: in the kernel", (400_000, 425_000)),  # behind the first of the group
        ("three", "100 % by header:x-user: in user space", (0, 1_000_000)),
        ("four", "0 % by request: in user space", (0, 0)),
    ):
        percentage = of_shadow(lines, name)["percentage"]
        assert percentage.startswith(f"{taken}, places ") and places(percentage)[:2] == at
    assert of_shadow(lines, "three")["kernel"] == "(header:x-test and not cidr:10.0.0.0/8)"
    assert any(line.startswith("  addresses   2 test(s)") for line in lines), "one for each shadow's use of it"
    assert any(line.startswith("  heads       1 test(s)") for line in lines)


@pytest.mark.parametrize(
    ("sample_by", "where"),
    [
        ("connection", "in the kernel"),
        ("client", "in the kernel"),
        ("request", "in user space"),
        ("header:X-User", "in user space"),
        ("cookie:Id", "in user space"),
    ],
)
def test_where_a_percentage_is_taken(tmp_path: Path, sample_by: str, where: str) -> None:
    lines = explained(tmp_path, f"shadows: {{a: {{percentage: 0.5, sample_by: '{sample_by}'}}}}\n")
    said = of_shadow(lines, "a")["percentage"]
    name = sample_by.replace("X-User", "x-user")  # names of headers have no case, those of cookies do
    assert said.startswith(f"0.5 % by {name}: {where}, ") and places(said)[:2] == (0, 5000)


@pytest.mark.parametrize("source", ["{source: X-Forwarded-For, trusted: [10.0.0.0/8]}", "{source: proxy_protocol}"])
def test_behind_another_balancer_addresses_are_left_to_user_space(tmp_path: Path, source: str) -> None:
    shadow = "{percentage: 5, sample_by: client, criteria: 'cidr:8.8.8.0/24 and not cidr:8.8.8.8 and header:X-Test'}"
    lines = explained(tmp_path, f"shadows: {{a: {shadow}}}\nclient: {source}\n")
    said = of_shadow(lines, "a")
    assert said["percentage"].startswith("5 % by client: in user space")
    assert said["kernel"].startswith("(? and ? and ")
    assert any(line.startswith("  addresses   0 test(s), 0 IPv4 and 0 IPv6 prefixes") for line in lines)
    assert not any("by address" in line for line in lines)
    by_connection = explained(tmp_path, f"shadows: {{a: {{percentage: 5}}}}\nclient: {source}\n")
    assert "in the kernel" in of_shadow(by_connection, "a")["percentage"]


def test_geography_is_counted_in_prefixes(tmp_path: Path) -> None:
    places = [("8.0.0.0/9", US), ("2.160.0.0/12", DE), ("2a01::/16", DE), ("2001:4860::/32", US)]
    database = write(tmp_path / "some.mmdb", places)
    counts = {}
    for criteria in ("geo:US", "geo:US or geo:DE", "not geo:europe"):
        assert kernel(tmp_path, criteria, f"geo: {{database: {database}}}\n") in (criteria, f"({criteria})")
        lines = explain(tmp_path / "f.yaml")
        line = next(line for line in lines if line.startswith("  addresses"))
        found = re.match(r"  addresses   1 test\(s\), (\d+) IPv4 and (\d+) IPv6 prefixes", line)
        assert found, line
        counts[criteria] = int(found[1]), int(found[2])
    assert all(four and six for four, six in counts.values())
    assert counts["geo:US or geo:DE"] > counts["geo:US"]


def test_geography_that_is_not_there(tmp_path: Path) -> None:
    text = "shadows: {a: {criteria: geo:US}}\n"
    with pytest.raises(ConfigError, match=r"none\.mmdb: No such file or directory: give a country"):
        explained(tmp_path, f"{text}geo: {{database: {tmp_path}/none.mmdb}}\n")
    with pytest.raises(ConfigError, match=r"f\.yaml: .*set geo\.database"):
        explained(tmp_path, text)


def test_what_is_coarser_in_the_kernel_is_noted(tmp_path: Path) -> None:
    lines = explained(
        tmp_path, f"shadows: {{a: {{criteria: 'header:X=~{LARGE} and header:Y=~\"^(?=a)b\" and method:GET'}}}}\n"
    )
    notes = [line[14:] for line in lines if line.startswith("  coarser")]
    assert len(notes) == 2
    assert notes[0].startswith(f"header:x=~{LARGE}: ") and "only whether there is such a header" in notes[0]
    assert notes[1].startswith('header:y=~"^(?=a)b": more is taken than its value says')
    assert not any(line.startswith("  coarser") for line in explained(tmp_path, "shadows: {a: {criteria: header:X}}\n"))


def test_what_the_kernel_has_no_room_for_is_noted_and_a_question_mark(tmp_path: Path) -> None:
    pairs = [(f"cidr:10.{n}.0.0/16", f"header:h{n}") for n in range(TESTS_MAX + 2)]
    criteria = " or ".join(f"({address} and {head})" for address, head in pairs)
    assert kernel(tmp_path, criteria) == "({} or (? and ?) or (? and ?))".format(
        " or ".join(f"({address} and {head})" for address, head in pairs[:TESTS_MAX])
    )
    lines = explain(tmp_path / "f.yaml")
    notes = [line[14:].partition(": left to user space")[0] for line in lines if line.startswith("  coarser")]
    assert sorted(notes) == sorted(test for pair in pairs[TESTS_MAX:] for test in pair)
    assert any(line.startswith(f"  addresses   {TESTS_MAX} test(s)") for line in lines)
    assert any(line.startswith(f"  heads       {TESTS_MAX} test(s)") for line in lines)


def test_more_tests_take_more_room(tmp_path: Path) -> None:
    sizes = []
    for criteria in ("header:X", "header:X and header:Y=abcdefghij and path:/api/*"):
        lines = explained(tmp_path, f"shadows: {{a: {{criteria: '{criteria}'}}}}\n")
        found = re.search(r"automaton of (\d+) states", "\n".join(lines))
        assert found
        sizes.append(int(found[1]))
    assert sizes[0] < sizes[1]


def test_a_faulty_file_is_refused_as_check_does(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml: shadows\.a\.criteria: .*column"):
        explained(tmp_path, "shadows: {a: {criteria: 'header:'}}\n")
    with pytest.raises(ConfigError, match="give a readable YAML file"):
        explain(tmp_path / "none.yaml")
