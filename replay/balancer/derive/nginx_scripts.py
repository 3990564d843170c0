"""Code in nginx's configuration: Lua, njs and Perl. What may call out is not run for replayed requests.

Calls to other services would happen twice, and would be of production. Code is judged by its text: what it calls, and
which modules it takes. A module that is not known to stay inside counts as one that calls out, since nobody here can
say what it does. Lua is taken out, with a note; njs and Perl, which cannot be taken out alone, are refused. All of it
stays where the settings ask for that.
"""

from __future__ import annotations

import re
from pathlib import Path

from replay.balancer.derive.change import DeriveOptions
from replay.balancer.derive.nginx_edits import Edits, Reason
from replay.balancer.derive.nginx_tree import Statement, walk
from replay.balancer.derive.nginx_words import decode
from replay.errors import UpstreamError

LUA, JAVASCRIPT, PERL = "lua", "js", "perl"  # what settings may keep

_LUA = re.compile(r"(?P<phase>\w+)_by_lua(?P<kind>_block|_file)?")
_LUA_COMMENT = re.compile(  # or a string, in which nothing is a comment
    r"""(?P<comment>--\[(=*)\[.*?\]\2\]|--[^\n]*)|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\[(=*)\[.*?\]\3\]""", re.DOTALL
)
_LUA_CALLS = re.compile(
    r"""
      ngx\.socket | ngx\.balancer | set_current_peer | ngx\.location\.capture | ngx\.run_worker_thread
    | ngx\.pipe | tcpsock | udpsock | \bos\.(?:execute|remove|rename|tmpname|exit) | \bio\. | \bffi\b | \bpackage\.
    | \bloadfile\b | \bdofile\b | \bloadstring\b | \bload\s*\( | \bdebug\.
    """,
    re.VERBOSE,
)
_LUA_MODULES = re.compile(r"""\brequire\s*(?:\(\s*)?(?:(["'])([\w.\-/]+)\1)?""")
# They compute, or keep state in nginx's own memory.
_LUA_HARMLESS = re.compile(
    r"""
      resty\.(?:core(?:\..*)? | lrucache(?:\..*)? | limit\..* | lock | string | random | md5 | sha\d* | aes | jwt
              | cookie | template | iputils | uuid | hmac | url)
    | cjson(?:\.safe)? | bit | string(?:\..*)? | table(?:\..*)? | math
    | ngx\.(?:re | base64 | resp | req | errlog | semaphore | ssl | ocsp | process)
    """,
    re.VERBOSE,
)
_JAVASCRIPT_CALLS = re.compile(r"\bngx\.fetch\b|\b(?:writeFile|appendFile|unlink|rename|mkdir)(?:Sync)?\b")
_JAVASCRIPT_MODULES = re.compile(r"""\bimport\b[^;\n]*["']([^"']+)["']""")
_PERL_CALLS = re.compile(r"\b(?:system|exec|open|socket|fork|require|use|do|eval|unlink|rename|mkdir|qx)\b|`|::")


def edit_scripts(http: Statement, options: DeriveOptions, edits: Edits) -> list[str]:
    """Take out what may call out, or refuse. Returns notes."""
    notes = []
    for statement, _ in walk(http):
        kind, why = _judge(statement, http.file)
        if not why:
            continue
        if kind in options.keep:
            notes.append(f"{statement.place}: {statement.name} stays as asked for: {why}")
        elif kind == LUA:
            notes.append(f"{statement.place}: {statement.name} is taken out: {why}; keep it with {LUA!r}")
            _take_out(statement, edits)
        else:
            raise UpstreamError(
                f"{statement.place}: {statement.name}: {why}: derive from a copy without it, or keep it with {kind!r}"
            )
    return notes


def _judge(statement: Statement, file: str) -> tuple[str, str]:
    """Of what kind the code is, and why it may call out: "" if it does not."""
    name = statement.name
    if match := _LUA.fullmatch(name):
        if match["kind"] != "_file":
            return LUA, _why_lua(" ".join(map(decode, statement.args)))
        code = _text_of(Path(statement.args[-1]))
        return LUA, f"{statement.args[-1]} is not a file that can be read here" if code is None else _why_lua(code)
    if name == "js_import":
        path = Path(file).parent / statement.args[-1]
        code = _text_of(path)
        return JAVASCRIPT, f"{path} is not a file that can be read here" if code is None else _why_javascript(code)
    if name in ("perl", "perl_set"):
        code = decode(statement.args[-1])
        inline = code.lstrip().startswith("sub")
        return PERL, "it may call out" if not inline or _PERL_CALLS.search(code) else ""
    return (PERL, "it may call out") if name in ("perl_require", "perl_modules") else ("", "")


def _why_lua(code: str) -> str:
    code = _LUA_COMMENT.sub(lambda match: " " if match["comment"] else match[0], code)
    if match := _LUA_CALLS.search(code):
        return f"it uses {match[0]}"
    for _, module in _LUA_MODULES.findall(code):
        if not module or not _LUA_HARMLESS.fullmatch(module):
            return f"it takes {module or 'a module'}, which may call out"
    return ""


def _why_javascript(code: str) -> str:
    if match := _JAVASCRIPT_CALLS.search(code):
        return f"it uses {match[0]}"
    for module in _JAVASCRIPT_MODULES.findall(code):
        if module not in ("crypto", "querystring", "buffer", "zlib", "xml"):
            return f"it takes {module}, which may call out"
    return ""


def _take_out(statement: Statement, edits: Edits) -> None:
    """A variable that only the code defines stays defined, since nginx would not start without."""
    if statement.name.startswith("set_by_lua"):
        empty = Statement("set", (statement.first, ""), None, statement.file, statement.line)
        edits.replace(statement, (empty,), Reason.CODE)
    else:
        edits.remove(statement, Reason.CODE)


def _text_of(path: Path) -> str | None:
    """None for a file that cannot be read; a relative path is one of nginx's prefix, which only nginx knows."""
    if not path.is_absolute():
        return None
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
