"""The structures of bpf/event.h, compared with what agent/capture/layout.py reads and writes."""

import re
import subprocess
from pathlib import Path

import pytest

from agent.capture import layout, segment
from agent.select import automaton

ROOT = Path(__file__).parents[2]
STRUCTS = (
    "segment_event", "control", "counters", "window", "selection", "flow_state",
    "sent_slot", "production_flow", "production_counts",
)  # fmt: skip
VALUES = {
    "KEY_V4_BYTES": segment.KEY_V4_BYTES,
    "KEY_V6_BYTES": segment.KEY_V6_BYTES,
    "PPM": layout.PPM,
    "SHADOWS_MAX": layout.SHADOWS_MAX,
    "ADDRESS_MASKS": layout.MASKS,
    "HEAD_MASKS": layout.MASKS,
    "STATES_MAX": layout.STATES_MAX,
    "CLASSES_MAX": layout.CLASSES_MAX,
    "SCAN_MAX_BYTES": layout.SCAN_MAX_BYTES,
    "STATE_MASK": automaton.STATE_MASK,
    "HAS_OUTPUT": automaton.OUTPUTS_FLAG,
    "HEAD_TESTS": (1 << layout.TESTS_MAX) - 1,
    "HEAD_END": automaton.HEAD_END,
    "REQUEST_LINE": automaton.REQUEST_LINE,
    "LENGTH_NAME": automaton.LENGTH_NAME,
    "LENGTH_DIGIT": automaton.LENGTH_DIGIT,
    "STICKY": automaton.STICKY,
    "FOLD": automaton.FOLD,
    "SENT_SLOTS": layout.SENT_SLOTS,
    "LATENCY_BUCKETS": layout.LATENCY_BUCKETS,
    "LATENCY_STEPS": layout.LATENCY_STEPS,
    "1 << LATENCY_UNIT_BITS": layout.LATENCY_UNIT_NS,
    "PHASES": layout.PHASES,
    "PHASE_PAUSED": layout.PHASE_PAUSED,
    "PHASE_MASK": (1 << layout.PHASE_BITS) - 1,
}
PROGRAM = r"""
#include <stddef.h>
#include <stdio.h>
#include "event.h"
#define SIZE(type, field) sizeof(((struct type *)0)->field)
#define SHOW_ALL(type) printf(#type " %zu\n", sizeof(struct type))
#define SHOW_VALUE(name) printf("#" #name "\t%llu\n", (unsigned long long)(name))
#define SHOW(type, field) printf(#type "." #field " %zu %zu\n", offsetof(struct type, field), SIZE(type, field))
int main(void)
{
	SHOWS
	return 0;
}
"""


def fields(struct: str) -> list[str]:
    text = re.search(rf"struct {struct} {{(.*?)}};", (ROOT / "bpf/event.h").read_text(), re.DOTALL).group(1)
    return re.findall(r"(?:__u\d+|struct \w+) (\w+)(?:\[\w+\])?;", text)


@pytest.fixture(scope="module")
def offsets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """(offset, size) of every field as the C compiler lays it out, with padding an error; of a struct, its size twice;
    of "#NAME", the value twice."""
    directory = tmp_path_factory.mktemp("layout")
    shows = "".join(f"SHOW({s}, {f});" for s in STRUCTS for f in fields(s))
    shows += "".join(f"SHOW_ALL({s});" for s in STRUCTS) + "".join(f"SHOW_VALUE({name});" for name in VALUES)
    (directory / "show.c").write_text(PROGRAM.replace("SHOWS", shows))
    subprocess.run(
        ["gcc", "-Wall", "-Wpadded", "-Werror", f"-I{ROOT / 'bpf'}", "show.c", "-o", "show"], cwd=directory, check=True
    )
    out = subprocess.run([directory / "show"], capture_output=True, text=True, check=True).stdout
    rows = [line.split("\t" if line[0] == "#" else " ") for line in out.splitlines()]
    return {row[0]: (int(row[1]), int(row[-1])) for row in rows}


def test_the_event_is_as_long_as_python_thinks(offsets: dict[str, tuple[int, int]]) -> None:
    assert offsets["segment_event"][0] == layout.EVENT_BYTES
    assert offsets["segment_event.key"][0] == layout.KEY_OFFSET


def test_event_fields_follow_each_other_as_in_the_record_struct(offsets: dict[str, tuple[int, int]]) -> None:
    sizes = [offsets[f"segment_event.{name}"][1] for name in fields("segment_event")[:-1]]
    assert sizes == [8, 4, 4, 4, 4, 1, 1, 1, 1]
    assert layout.RECORD.format == "<IIQIIIIBBBB"
    assert layout.RECORD.size == layout.RECORD_HEADER_BYTES + layout.KEY_OFFSET


@pytest.mark.parametrize(
    ("struct", "names", "format_struct"),
    [
        ("control", ("lease_until_ns", *layout.Control._fields, "harm_phase"), layout.CONTROL),
        ("counters", layout.Counters._fields, layout.COUNTERS),
    ],
)
def test_named_fields_are_the_same_in_the_same_order(
    offsets: dict[str, tuple[int, int]], struct: str, names: tuple[str, ...], format_struct: layout.struct.Struct
) -> None:
    assert fields(struct) == list(names)
    expected = 0
    for name in names:
        offset, size = offsets[f"{struct}.{name}"]
        assert offset == expected, name
        expected += size
    assert expected == format_struct.size + (offsets["control.harm_phase"][1] if struct == "control" else 0)


@pytest.mark.parametrize("name", VALUES)
def test_constants_are_the_same(offsets: dict[str, tuple[int, int]], name: str) -> None:
    assert offsets[f"#{name}"][0] == VALUES[name]


def test_limits_in_python_agree_with_each_other() -> None:
    assert (automaton.STATES_MAX, automaton.CLASSES_MAX) == (layout.STATES_MAX, layout.CLASSES_MAX)
    assert automaton.STATE_MASK & automaton.OUTPUTS_FLAG == 0


@pytest.mark.parametrize("struct", STRUCTS)
def test_there_is_no_padding(offsets: dict[str, tuple[int, int]], struct: str) -> None:
    at = 0
    for name in fields(struct):
        offset, size = offsets[f"{struct}.{name}"]
        assert offset == at, name
        at += size
    assert offsets[struct][0] == at


def test_a_selection_is_where_python_writes_it(offsets: dict[str, tuple[int, int]]) -> None:
    numbers = ["shadows", "by_client", "addressed", "headed"]
    assert fields("selection") == [*numbers, "windows", *layout.SELECTION_TABLES]
    assert [offsets[f"selection.{name}"] for name in numbers] == [(0, 4), (4, 4), (8, 4), (12, 4)]
    assert (fields("window"), offsets["window"][0]) == (["from_ppm", "to_ppm"], 8)
    assert offsets["selection.windows"] == (16, 8 * layout.SHADOWS_MAX)
    assert layout.SELECTION_HEAD.format == f"<IIII{2 * layout.SHADOWS_MAX}I"
    for name, place in layout.SELECTION_TABLES.items():
        assert offsets[f"selection.{name}"] == place, name
    assert offsets["selection"][0] == layout.SELECTION_BYTES
    assert layout.SELECTION_BYTES % 8 == 0, "elements of an array map lie so far apart"


def test_the_words_that_are_written_alone_are_where_python_writes_them(offsets: dict[str, tuple[int, int]]) -> None:
    assert offsets["control.lease_until_ns"] == (0, 8)
    assert offsets["control.tables"] == (layout.CONTROL_TABLES_AT, 4)
    assert offsets["control.enabled"] == (layout.CONTROL_ENABLED_AT, 4)
    assert offsets["control.harm_phase"] == (layout.CONTROL_HARM_PHASE_AT, 4) == (layout.CONTROL.size, 4)


def test_what_the_agent_reads_of_measurements_is_where_it_looks(offsets: dict[str, tuple[int, int]]) -> None:
    assert offsets["sent_slot"][0] == layout.SENT_SLOT_BYTES
    assert [offsets[f"sent_slot.{name}"] for name in ("first_ns", "last_ns")] == [(0, 8), (8, 8)]
    assert offsets["sent_slot.version"] == (layout.SENT_VERSION_AT, 4)
    assert offsets["sent_slot.key"] == (layout.SENT_KEY_AT, segment.KEY_V6_BYTES)
    assert offsets["production_counts"][0] == layout.COUNTS.size == layout.LATENCY_BUCKETS * 8 + 8
    assert (offsets["production_counts.buckets"][0], offsets["production_counts.errors"]) == (0, (512 * 8, 8))
