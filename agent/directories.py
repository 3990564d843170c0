"""Files and directories that the agent's user is to use: made and checked while there is the privilege to do so."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from agent import privileges
from agent.errors import LoadError
from agent.select.geo import GeoDatabase


def prepare(key: str, directory: Path | None, user: pwd.struct_passwd, mode: int = 0o755) -> None:
    """Make a directory that the configuration names under `key`; LoadError when the user could not write there. `mode`
    is for the last of its parts, if it is made."""
    if directory is None:
        return
    try:
        for each in (*reversed(directory.parents), directory):
            if not each.exists():
                each.mkdir()
                each.chmod(mode if each == directory else 0o755)
                os.chown(each, user.pw_uid, user.pw_gid)  # one that was there keeps its owner
    except OSError as error:
        raise LoadError(f"{key} {directory}: {error.strerror}: choose one that can be made") from None
    if not directory.is_dir() or not privileges.may_write(user, directory):
        who = user.pw_name
        raise LoadError(f"{key} {directory}: user {who} cannot write there: chown {who} {directory}")


def open_geography(database: str | None, user: pwd.struct_passwd) -> GeoDatabase | None:
    """The database, if there is to be one; LoadError when the user cannot read it, which has to when it changes."""
    if database is None:
        return None
    path = Path(database)
    geo = GeoDatabase(path)
    if not privileges.may_read(user, path):
        who = user.pw_name
        raise LoadError(f"geo.database {path}: user {who} cannot read it: chmod a+r {path}, or name another `user`")
    return geo
