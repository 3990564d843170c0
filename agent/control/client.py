"""Asks a running agent over its control socket: one request, one JSON answer, every failure in one line.

The command line imports this at every start, so what only a request needs is imported when one is made.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from agent.control.request import ControlError
from replay.errors import ShadowtapError

DEFAULT_SOCKET = Path("/run/shadowtap/control.sock")
TIMEOUT_S = 10.0
TEXT_LIMIT_CHARS = 1000  # of an error that is passed on


class NoAnswerError(ShadowtapError):
    """No agent could be asked, or it did not answer."""


def ask(
    path: Path, method: str, target: str, body: dict[str, Any] | None = None, timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """The JSON object that the agent listening at `path` answers. ControlError with its text when it refuses,
    NoAnswerError when nobody answers; `timeout_s` is for each step: to connect, to send, to hear something."""
    with _connected(path, timeout_s) as end:
        status, text = _exchange(end, path, method, target, body, timeout_s)
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise NoAnswerError(f"{path}: what listens there does not answer as an agent does")
    if status >= 400:
        raise ControlError(status, _one_line(answer.get("error", f"the agent refuses this (status {status})")))
    return answer


def _connected(path: Path, timeout_s: float) -> socket.socket:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        end.settimeout(timeout_s)
        end.connect(str(path))
    except OSError as error:
        end.close()
        raise NoAnswerError(_why_not(error, path)) from None
    return end


def _why_not(error: OSError, path: Path) -> str:
    match error:
        case FileNotFoundError() | ConnectionRefusedError() | NotADirectoryError():
            return (
                f"no agent listens on {path}: is `shadowtap run` running, with `control` set in its configuration? "
                "(--socket names another)"
            )
        case PermissionError():
            return f"{path}: permission denied: {_who_may(path)}"
        case BlockingIOError() | TimeoutError():
            return f"{path}: too many ask the agent at once, or it hangs: try again"
    return f"{path}: {error.strerror or error}"


def _who_may(path: Path) -> str:
    import grp

    try:
        found = path.stat()
    except OSError:
        return "its directory is closed to you: use sudo"
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return f"it is for its owner and group {group} (mode {found.st_mode & 0o777:04o}): join the group, or use sudo"


def _exchange(
    end: socket.socket, path: Path, method: str, target: str, body: dict[str, Any] | None, timeout_s: float
) -> tuple[int, bytes]:
    """Status and body of the answer."""
    import http.client

    connection = http.client.HTTPConnection("localhost")
    connection.sock = end  # so that it does not open one
    data = None if body is None else json.dumps(body).encode()
    headers = {"Accept": "application/json"} | ({} if data is None else {"Content-Type": "application/json"})
    try:
        connection.request(method, target, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except TimeoutError:
        raise NoAnswerError(f"{path}: the agent does not answer within {timeout_s:g} s: see its log") from None
    except http.client.HTTPException:
        raise NoAnswerError(f"{path}: what listens there does not answer as an agent does") from None
    except OSError as error:
        reason = error.strerror or error
        raise NoAnswerError(f"{path}: the agent has closed the connection ({reason}): see its log") from None
    finally:
        connection.close()


def _one_line(text: object) -> str:
    """Fit for a terminal, whatever it is."""
    line = " ".join(str(text).split())[:TEXT_LIMIT_CHARS]
    return line if line.isprintable() else ascii(line)
