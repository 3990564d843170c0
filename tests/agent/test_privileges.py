"""Giving up privilege, tried in processes that are thrown away."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent import privileges
from agent.errors import LoadError

ROOT = Path(__file__).parents[2]
NOBODY = pwd.getpwnam("nobody")
BEGIN = """
import json, os, pwd, socket, subprocess, sys
from agent import privileges
def status(*names):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return [lines[name].split() for name in names]
def fails(call, *arguments):
    try:
        call(*arguments)
    except (OSError, PermissionError) as error:
        return type(error).__name__
    return "nothing"
"""


def in_a_process(code: str, **options: object) -> object:
    """What `code` puts in `result`."""
    argv = [sys.executable, "-c", BEGIN + code + "\nprint(json.dumps(result))"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.root
@pytest.mark.parametrize("name", ["nobody", "root"])
def test_nothing_is_left_and_nothing_comes_back(name: str) -> None:
    uid, caps, groups, no_new, ways = in_a_process(
        f"""
privileges.drop(pwd.getpwnam({name!r}))
ways = [fails(os.setuid, 0 if {name!r} != "root" else 1), fails(os.setgroups, [0]), fails(os.chroot, "/"),
        fails(lambda: socket.socket().setsockopt(socket.SOL_SOCKET, 36, 1))]
child = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
child_caps = [line.split()[1] for line in child.splitlines() if line.startswith("Cap")]
caps = status("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")
result = [os.getresuid(), [c[0] for c in caps] + child_caps, status("Groups"), status("NoNewPrivs"), ways]
"""
    )
    assert uid == [pwd.getpwnam(name).pw_uid] * 3
    assert {int(c, 16) for c in caps} == {0}
    assert (groups, no_new) == ([[]], [["1"]])
    assert set(ways) <= {"PermissionError", "OSError"}


@pytest.mark.root
def test_the_keeper_keeps_one() -> None:
    effective, mark, other = in_a_process(
        """
privileges.drop(pwd.getpwnam("nobody"), keep=(privileges.CAP_NET_ADMIN,))
mark = fails(lambda: socket.socket().setsockopt(socket.SOL_SOCKET, 36, 1))
result = [privileges.effective_capabilities(), mark, fails(os.setuid, 0)]
"""
    )
    assert (effective, mark, other) == (1 << 12, "nothing", "PermissionError")


@pytest.mark.root
def test_without_root_only_the_way_back_is_closed() -> None:
    result = in_a_process(
        """
privileges.drop(pwd.getpwnam("root"))
result = [os.getuid(), status("NoNewPrivs"), privileges.effective_capabilities()]
""",
        user="nobody",
    )
    assert result == [NOBODY.pw_uid, [["1"]], 0]


@pytest.mark.root
def test_a_child_dies_with_its_parent_also_after_dropping() -> None:
    child = f"""
import pwd, sys, time
sys.path.insert(0, {str(ROOT)!r})
from agent import privileges
privileges.drop(pwd.getpwnam("nobody")); privileges.die_with_parent()
print("there", flush=True); time.sleep(60)
"""
    parent = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE)
child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_service_user(monkeypatch: pytest.MonkeyPatch) -> None:
    assert privileges.service_user("root").pw_uid == 0
    with pytest.raises(LoadError, match="no user 'no-such-user' on this host: create it"):
        privileges.service_user("no-such-user")
    monkeypatch.setattr(privileges, "USERS", ("no-such-user", "nobody"))
    monkeypatch.setattr(privileges, "_installation", lambda: {Path("/")})
    assert privileges.service_user().pw_name == "nobody"


def test_where_the_installation_cannot_be_read_root_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    monkeypatch.setattr(privileges, "USERS", ("nobody",))
    monkeypatch.setattr(privileges, "_installation", lambda: {Path("/"), tmp_path / "closed"})
    if os.geteuid() == 0:
        assert privileges.service_user().pw_uid == 0
        assert privileges.service_user("nobody").pw_name == "nobody"  # who says so gets it
    (tmp_path / "closed").chmod(0o711)
    assert privileges.service_user().pw_name == "nobody"


@pytest.mark.root
def test_who_may_write_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pwd.getpwuid(0)
    parents = set(tmp_path.parents)  # pytest's own are closed to others
    enter = privileges._may_enter
    monkeypatch.setattr(privileges, "_may_enter", lambda user, path: path in parents or enter(user, path))
    for mode, owner, group, may in (
        (0o700, NOBODY.pw_uid, 0, True),
        (0o500, NOBODY.pw_uid, 0, False),
        (0o770, 0, NOBODY.pw_gid, True),
        (0o705, 0, NOBODY.pw_gid, False),
        (0o703, 0, 0, True),
        (0o702, 0, 0, False),
        (0o755, 0, 0, False),
    ):
        os.chown(tmp_path, owner, group)
        tmp_path.chmod(mode)
        assert privileges.may_write(NOBODY, tmp_path) is may, oct(mode)
    os.chown(tmp_path, 0, 0)
    tmp_path.chmod(0o777)
    parents.remove(tmp_path.parent)
    assert not privileges.may_write(NOBODY, tmp_path)  # cannot even get there
    tmp_path.chmod(0o700)
    assert privileges.may_write(root, tmp_path)


@pytest.mark.root
def test_giving_up_twice_is_no_error() -> None:
    """A worker that is replaced starts in what the service has left: root without capabilities."""
    code = """
root = pwd.getpwnam("root")
privileges.drop(root)
code = "import os, pwd; from agent import privileges; privileges.drop(pwd.getpwnam('root')); print(os.geteuid())"
result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
"""
    assert in_a_process(code) == "0"


def test_giving_up_beside_another_thread_is_refused() -> None:
    code = """
import threading, time
threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
try:
    privileges.drop(pwd.getpwnam("nobody"))
    result = "dropped"
except RuntimeError as error:
    result = str(error)
"""
    assert "before the first thread" in str(in_a_process(code))
