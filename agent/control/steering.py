"""What the shadows take, changed while the agent runs: in the kernel by a switch of tables, in the workers by a
message.

Nothing is detached and no packet is lost. Turning a shadow off is one store that the next packet sees; every other
change writes the set of tables that is not in use, and then switches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from agent import config as configuration
from agent.capture.tables import Tables
from agent.config import Config
from agent.errors import ConfigError
from agent.order import Order
from agent.pool_order import pool_order
from agent.select.choice import Rule
from agent.select.geo import GeoDatabase
from agent.select.sampling import EVERYTHING, By
from agent.select.superset import Selection, Wanted, make_selection
from agent.shadow_config import Shadow
from replay.balancer.settings import UpstreamSpec
from replay.errors import UpstreamError

CHANGEABLE = ("enabled", "percentage", "criteria", "sample_by", "exclusive", "methods", "upstreams")


def selection_of(order: Order, geo: GeoDatabase | None) -> Selection:
    """What the kernel is to decide."""
    wanted = [_wanted(order, shadow.rule) for shadow in order.shadows]
    return make_selection(wanted, geo.prefixes if geo else None, peer_is_client=order.peer_is_client)


def _wanted(order: Order, rule: Rule) -> Wanted:
    if not order.samples_in_kernel(rule):
        return Wanted(rule.criteria, EVERYTHING)
    return Wanted(rule.criteria, rule.window, rule.by is By.CLIENT)


class Steering:
    """Owns the configuration in force. `tell` gives the workers their new rules, one for each shadow."""

    def __init__(
        self,
        config: Config,
        tables: Tables,
        geo: GeoDatabase | None,
        tell: Callable[[list[Rule]], None],
        path: Path | None = None,
        kept: Callable[[], AbstractContextManager[None]] = nullcontext,
        change_pool: Callable[[str, list[UpstreamSpec]], Callable[[], None]] | None = None,
    ) -> None:
        """`path` is the file that `reload` reads; `kept` keeps the lease during work that takes longer; `change_pool`
        gives a shadow other upstreams, or raises UpstreamError; what it returns takes that back."""
        self.configured = config
        self.config = config  # in force: what is configured, with `overrides`
        self._overrides: dict[str, dict[str, Any]] = {}
        self._paused = False
        self._begun = False
        self._off: set[str] = set()  # switched off, and not overridden since
        self.selection = selection_of(Order.of(config), geo)
        self._tables = tables
        self._geo = geo
        self._tell = tell
        self._kept = kept
        self._path = path
        self._change_pool = change_pool

    def begin(self) -> None:
        """Put the first selection into the kernel. ConfigError when that has no room for it."""
        _select(self._tables, self.selection)
        self._begun = True
        self._enable()

    def switch_off(self, name: str) -> None:
        """With one store the next packet is not copied for a shadow any more, until an `override` of it succeeds."""
        self._tables.enabled &= ~self._bit(name)
        self._off.add(name)

    def override(self, name: str, fields: dict[str, Any]) -> None:
        """Put these settings of a shadow in force instead of the configured ones; none: the configured ones again.
        ConfigError when they cannot be; then what was in force stays."""
        before = self._overrides.get(name, {})
        if fields != before:
            self._overrides[name] = fields
            try:
                self._put_in_force(self.configured)
            except ConfigError:
                self._overrides[name] = before
                raise
        if name in self._off:
            self._off.discard(name)
            self._enable()

    def overridden(self, name: str) -> dict[str, Any]:
        """What is in force of a shadow instead of what is configured."""
        return self._overrides.get(name, {})

    def pause(self, paused: bool) -> None:
        """Copy nothing for a while, for any shadow; everything else stays as it is."""
        self._paused = paused
        self._enable()

    def change(self, name: str, fields: dict[str, Any]) -> None:
        """Change some settings of one shadow; ConfigError says what does not fit, and then nothing has changed."""
        if name not in self.config.shadows:
            raise ConfigError(f"no shadow {name!r}; there is {', '.join(self.config.shadows)}")
        if unknown := sorted(set(fields) - set(CHANGEABLE)):
            raise ConfigError(f"{', '.join(unknown)}: not changeable at run time; {', '.join(CHANGEABLE)} are")
        if fields.get("enabled") is False and len(fields) == 1:  # at once, before anything that takes time
            self._tables.enabled &= ~self._bit(name)
        self.change_all({name: fields})

    def change_all(self, sections: dict[str, dict[str, Any]]) -> None:
        """Change settings of several shadows, all or none."""
        data = self.configured.data
        for name, fields in sections.items():
            data["shadows"][name] |= fields
        self._put_in_force(configuration.validated(data, "the change", files=False))

    def reload(self) -> list[str]:
        """Take over from the file what can be changed; lines about what could not. ConfigError changes nothing."""
        if self._path is None:
            raise ConfigError("the configuration was not read from a file")
        found = configuration.load(self._path)
        if list(found.shadows) != list(self.configured.shadows):
            raise ConfigError(f"{self._path}: shadows were added, removed or moved: restart the agent for that")
        if self.configured.geo is None and found.geo is not None:
            raise ConfigError(f"{self._path}: a geo.database was added: restart the agent for that")
        kept, wanted = self.configured.data, found.data
        for name, shadow in kept["shadows"].items():
            shadow |= {key: wanted["shadows"][name][key] for key in CHANGEABLE}
        self._put_in_force(configuration.validated(kept, str(self._path), files=False))
        return [f"{key}: a change there needs a restart" for key in wanted if wanted[key] != kept[key]]

    def look_at_geography(self) -> str:
        """Take a new database over when the file was replaced; what is wrong with it, or ""."""
        if self._geo is None or not self._geo.changed():
            return ""
        problem = self._geo.reload()
        if problem is not None:
            return f"the old file stays in use: {problem}"
        try:
            self._apply(self.config)
        except ConfigError as error:
            return f"the new file is in use, but not in the kernel, which decides with the old one: {error}"
        return ""

    def status(self) -> list[dict[str, Any]]:
        """The shadows as they are now."""
        return [
            {
                "name": name,
                **{key: getattr(shadow, key) for key in CHANGEABLE},
                "upstreams": [upstream.plain for upstream in shadow.upstreams],
                "places_ppm": self.config.windows[name],
                **({"configured": configured} if (configured := self._configured(name)) else {}),
            }
            for name, shadow in self.config.shadows.items()
        ]

    def _configured(self, name: str) -> dict[str, Any]:
        """What is configured of a shadow and not in force."""
        return {key: getattr(self.configured.shadows[name], key) for key in self._overrides.get(name, {})}

    def _put_in_force(self, configured: Config) -> None:
        config = configured
        if any(self._overrides.values()):
            data = configured.data
            for name, fields in self._overrides.items():
                data["shadows"][name] |= fields
            config = configuration.validated(data, "what is in force", files=False)
        if _only_switches(self.config, config):
            self._turn(config)  # the tables are the same
        else:
            self._apply(config)
        self.configured = configured

    def _bit(self, name: str) -> int:
        return 1 << list(self.config.shadows).index(name)

    def _enable(self) -> None:
        mask = _mask(self.config.shadows.values()) & ~sum(self._bit(name) for name in self._off)
        self._tables.enabled = mask if self._begun and not self._paused else 0

    def _apply(self, config: Config) -> None:
        order = Order.of(config)
        undo: list[Callable[[], None]] = []
        with self._kept():
            selection = selection_of(order, self._geo)
            try:
                self._change_pools(config, undo)
                # What goes off goes off first, and what comes on comes on when everybody knows the new rules.
                self._tables.enabled &= _mask(config.shadows.values())
                self._tell([shadow.rule for shadow in order.shadows])
                _select(self._tables, selection)
            except ConfigError:
                for each in reversed(undo):
                    each()
                self._turn(self.config)
                raise
        self.selection = selection
        self.config = config
        self._enable()

    def _change_pools(self, config: Config, undo: list[Callable[[], None]]) -> None:
        for name, shadow in config.shadows.items():
            if shadow.upstreams == self.config.shadows[name].upstreams or self._change_pool is None:
                continue
            if not shadow.upstreams or not self.config.shadows[name].upstreams:
                raise ConfigError(f"shadows.{name}.upstreams: from or to none at all takes a restart")
            try:
                undo.append(self._change_pool(name, list(pool_order(shadow).upstreams)))
            except UpstreamError as error:
                raise ConfigError(f"shadows.{name}: {error}") from None

    def _turn(self, config: Config) -> None:
        """Tell the workers, and let the kernel follow."""
        self._tell([shadow.rule for shadow in Order.of(config).shadows])
        self.config = config
        self._enable()


def _select(tables: Tables, selection: Selection) -> None:
    try:
        tables.select(selection)
    except OSError as error:
        prefixes = len(selection.prefixes4) + len(selection.prefixes6)
        raise ConfigError(
            f"the kernel has no room for the {prefixes} prefixes of the criteria ({error.strerror}): "
            "ask for fewer countries or networks"
        ) from None


def _only_switches(old: Config, new: Config) -> bool:
    """Nothing but `enabled` of shadows differs."""
    pairs = zip(old.shadows.values(), new.shadows.values(), strict=True)
    switched = [after.model_copy(update={"enabled": before.enabled}) for before, after in pairs]
    return switched == list(old.shadows.values()) and old.windows == new.windows


def _mask(shadows: Iterable[Shadow]) -> int:
    """A bit for each that is on and takes anything."""
    return sum(1 << place for place, shadow in enumerate(shadows) if shadow.enabled and shadow.share_ppm)
