"""The structures of bpf/event.h, compared with what agent/capture/layout.py reads and writes."""

import re
import subprocess
from pathlib import Path

import pytest

from agent.capture import layout

ROOT = Path(__file__).parents[2]
PROGRAM = r"""
#include <stddef.h>
#include <stdio.h>
#include "event.h"
#define SIZE(type, field) sizeof(((struct type *)0)->field)
#define SHOW(type, field) printf(#type "." #field " %zu %zu\n", offsetof(struct type, field), SIZE(type, field))
int main(void)
{
	SHOWS
	printf("segment_event %zu\n", sizeof(struct segment_event));
	return 0;
}
"""


def fields(struct: str) -> list[str]:
    text = re.search(rf"struct {struct} {{(.*?)}};", (ROOT / "bpf/event.h").read_text(), re.DOTALL).group(1)
    return re.findall(r"__u\d+ (\w+)(?:\[\w+\])?;", text)


@pytest.fixture(scope="module")
def offsets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """(offset, size) of every field as the C compiler lays it out, with padding an error."""
    directory = tmp_path_factory.mktemp("layout")
    shows = "".join(f"SHOW({s}, {f});" for s in ("segment_event", "control", "counters") for f in fields(s))
    (directory / "show.c").write_text(PROGRAM.replace("SHOWS", shows))
    subprocess.run(
        ["gcc", "-Wall", "-Wpadded", "-Werror", f"-I{ROOT / 'bpf'}", "show.c", "-o", "show"], cwd=directory, check=True
    )
    out = subprocess.run([directory / "show"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in out.splitlines()]
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
        ("control", ("lease_until_ns", *layout.Control._fields), layout.CONTROL),
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
    assert expected == format_struct.size
