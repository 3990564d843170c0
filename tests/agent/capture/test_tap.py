"""The agent's side of the kernel program, without the program: orders, lease, and every way the loader can fail."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

import pytest

from agent.capture.layout import CONTROL, PORT_WORDS, SELECTION_BYTES, Control
from agent.capture.loader import MAPS, PROGRAMS
from agent.capture.tap import SENT_THROUGH_MAX, TRIES, Tap, TapOrder, order_for
from agent.errors import LoadError

ORDER = TapOrder("bpf", 1, False, 14, 2, 4096, "tcx")
SIZES = {  # of those that are mapped, as the kernel rounds them
    "control": 4096,
    "ports": PORT_WORDS * 8,
    "selections": -(-2 * SELECTION_BYTES // 4096) * 4096,
    "production_latency": 12288,
}


class Memory:
    """A tap whose maps are plain memory."""

    def __init__(self, attached: str = "tcx", order: TapOrder = ORDER) -> None:
        self.descriptors = [os.memfd_create(name) for name in MAPS]
        for name, size in SIZES.items():
            os.ftruncate(self.descriptors[MAPS.index(name)], size)
        self.control, self.ports = os.dup(self.descriptors[0]), os.dup(self.descriptors[1])
        self.descriptors += [os.memfd_create(str(n)) for n in range(len(PROGRAMS) + order.workers + 2)]
        self.tap = Tap(order, attached, self.descriptors)

    def orders(self) -> tuple[int, ...]:
        return CONTROL.unpack(os.pread(self.control, CONTROL.size, 0))

    def watched(self) -> set[int]:
        words = struct.unpack(f"<{PORT_WORDS}Q", os.pread(self.ports, PORT_WORDS * 8, 0))
        return {64 * at + bit for at, word in enumerate(words) for bit in range(64) if word >> bit & 1}


def test_ports_are_replaced_as_a_whole() -> None:
    memory = Memory()
    memory.tap.watch([1, 80, 443, 65535])
    assert memory.watched() == {1, 80, 443, 65535}
    memory.tap.watch([8080])
    assert memory.watched() == {8080}


def test_the_lease_begins_with_the_orders_and_ends_with_stop() -> None:
    memory = Memory()
    control = Control(1, 2, 3, 4, 1, 6, 7, 8, 9)
    before = time.monotonic_ns()
    memory.tap.arm(control, 5_000_000_000)
    until, *orders = memory.orders()
    assert Control(*orders) == control
    assert before + 5_000_000_000 <= until <= time.monotonic_ns() + 5_000_000_000
    memory.tap.renew()
    assert memory.orders()[0] > until
    memory.tap.stop()
    assert memory.orders() == (0, *control)


def test_closing_ends_the_lease_and_closes_every_descriptor() -> None:
    memory = Memory()
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    memory.tap.arm(Control(1, 2, 3, 4, 1, 6, 7, 8, 9), 1 << 40)
    memory.tap.close()
    assert memory.orders()[0] == 0
    # those, and what `mmap` keeps of those that are mapped
    assert open_before - len(list(Path("/proc/self/fd").iterdir())) == len(memory.descriptors) + len(SIZES)
    for descriptor in memory.descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_the_descriptors_are_told_apart_by_their_place() -> None:
    memory = Memory()
    tap, found = memory.tap, [Path(f"/proc/self/fd/{fd}") for fd in memory.descriptors]
    names = [str(path.readlink()).removeprefix("/memfd:").removesuffix(" (deleted)") for path in found]
    assert len(MAPS) == 6 + TRIES
    assert names == [*MAPS, *map(str, range(7))]
    programs, rings = memory.descriptors[10:13], memory.descriptors[13:15]
    assert [*tap.programs, tap.sent_program] == programs
    assert (tap.rings, names[memory.descriptors.index(tap.sent_slots)]) == (rings, "sent_slots")


def test_two_words_of_the_control_block_are_the_tables() -> None:
    """What decides, and who is on, changes without a word about the rest; new orders may keep both."""
    memory = Memory()
    control = Control(1, 2, 3, tables=0, enabled=0, workers=6, own_mark=7, request_limit=8, response_limit=9)
    memory.tap.arm(control, 5_000_000_000)
    memory.tap.tables.enabled = 0b101
    until, *orders = memory.orders()
    assert until and Control(*orders) == control._replace(tables=1 << 1, enabled=0b101)
    memory.tap.arm(control._replace(tables=1, enabled=3), 5_000_000_000)
    assert (memory.tap.tables.active, memory.tap.tables.enabled) == (1, 3)
    memory.tap.stop()
    assert memory.orders() == (0, *control._replace(tables=1, enabled=3))


def test_what_the_harm_check_measures_is_a_word_of_its_own() -> None:
    """Orders leave it alone, and a lapse of the lease begins a generation."""
    memory = Memory()

    def word() -> int:
        return int.from_bytes(os.pread(memory.control, 4, CONTROL.size), "little")

    memory.tap.latency.start(1)
    started = word()
    memory.tap.arm(Control(1, 2, 3, 4, 1, 6, 7, 8, 9, harm_ppm=10), 1)
    assert (word(), memory.orders()[-1]) == (started, 10)
    time.sleep(0.001)
    assert memory.tap.renew() > 0
    assert word() == started + 4


def test_what_is_left_to_attach() -> None:
    assert Memory("tcx").tap.unattached == []
    memory = Memory("none")
    assert memory.tap.unattached == memory.tap.programs
    loopback = Memory("none", TapOrder("bpf", 1, True, 14, 2, 4096, "none"))
    assert loopback.tap.unattached == loopback.tap.programs[:1]
    assert len(loopback.tap.rings) == 2


def test_the_order_for_an_interface() -> None:
    order = order_for("lo", 3, 8192, "clsact")
    assert (order.ifindex, order.loopback, order.link_header_bytes) == (socket.if_nametoindex("lo"), True, 14)
    assert (order.workers, order.ring_bytes, order.attach) == (3, 8192, "none")
    assert order_for("lo", 3, 8192, "auto").attach == "auto"
    assert (Path(order.sources) / "tap.c").exists()
    assert order.sent_through == ()
    assert order_for("lo", 3, 8192, "auto", [order.ifindex, 1 << 30]).sent_through == (order.ifindex,)
    assert len(order_for("lo", 3, 8192, "auto", [order.ifindex] * 99).sent_through) == SENT_THROUGH_MAX
    with pytest.raises(LoadError, match=r"no interface 'nope0' here; there are: .*lo"):
        order_for("nope0", 1, 4096, "auto")


def loader(tmp_path: Path, code: str) -> str:
    """An interpreter that is none: it runs `code` with `channel` and `order`."""
    path = tmp_path / "interpreter"
    lines = ["#!/usr/bin/python3", "import json, os, socket, sys", "channel = socket.socket(fileno=int(sys.argv[3]))"]
    path.write_text("\n".join([*lines, "order = json.loads(channel.recv(65536))", code]) + "\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("channel.send(json.dumps({'error': 'it broke'}).encode())", "the kernel program was not loaded: it broke"),
        ("sys.exit(3)", "the loader ended without an answer (status 3)"),
        ("os.kill(os.getpid(), 9)", "the loader ended without an answer (status -9)"),
        (
            "print('x\\nbpf: error: unknown type\\ny'); channel.send(json.dumps({'error': 'it broke'}).encode())",
            "it broke (bpf: error: unknown type)",
        ),
    ],
)
def test_a_loader_that_fails_is_one_line(tmp_path: Path, code: str, says: str) -> None:
    with pytest.raises(LoadError) as error:
        Tap.load(ORDER, loader(tmp_path, code))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("`shadowtap doctor` says what this host lacks")


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="bcc needs Debian's python3 and python3-bpfcc"):
        Tap.load(ORDER, str(tmp_path / "none"))


def test_the_loader_is_told_the_whole_order_and_its_descriptors_are_taken_over(tmp_path: Path) -> None:
    code = f"""
fds = [os.memfd_create(str(n)) for n in range({len(MAPS) + len(PROGRAMS)} + order["workers"] + 2)]
for name, size in {SIZES}.items(): os.ftruncate(fds[{MAPS}.index(name)], size)
assert order["ring_bytes"] == 4096 and int(sys.argv[4]) == os.getppid()
answer = {{"attached": order["attach"], "sent_unattached": ["interface 9: gone"]}}
socket.send_fds(channel, [json.dumps(answer).encode()], fds)
"""
    tap = Tap.load(ORDER, loader(tmp_path, code))
    assert tap.attached == "tcx"
    assert (len(tap.programs), len(tap.rings), tap.sent_unattached) == (2, 2, ["interface 9: gone"])
    tap.close()
