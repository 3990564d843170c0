"""Changes while the agent runs: what reaches the kernel and the workers, in which order, and what changes nothing."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.capture.tables import Tables
from agent.config import Config, load, parse, validated
from agent.control.steering import CHANGEABLE, Steering, selection_of
from agent.errors import ConfigError
from agent.order import Order
from agent.select.choice import Rule
from agent.select.geo import GeoDatabase
from agent.select.language import parse as criteria
from agent.select.sampling import EVERYTHING, By, Window
from agent.select.superset import Selection
from replay.balancer.settings import UpstreamSpec
from replay.errors import UpstreamError
from tests.agent.select.test_geo import DE, US, write

TEXT = """
capture: {interface: lo, ports: [80]}
shadows:
  one: {percentage: 10, upstreams: ["198.51.100.1:80"]}
  two: {percentage: 20, criteria: "header:X-Test", enabled: false}
  three: {percentage: 30, criteria: "cidr:10.0.0.0/8", sample_by: client, exclusive: blue}
"""


class FakeTables:
    """In the place of Tables: notes what is done, and can be without room."""

    def __init__(self, log: list[tuple[str, Any]]) -> None:
        self.log = log
        self.selection: Selection | None = None
        self.full = False
        self._enabled = 0

    @property
    def enabled(self) -> int:
        return self._enabled

    @enabled.setter
    def enabled(self, mask: int) -> None:
        if mask != self._enabled:
            self.log.append(("enabled", mask))
        self._enabled = mask

    def select(self, selection: Selection) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.log.append(("select", selection))
        self.selection = selection


class Bench:
    """A steering that has begun, and what it did since."""

    def __init__(self, config: Config, geo: GeoDatabase | None = None, path: Path | None = None) -> None:
        self.log: list[tuple[str, Any]] = []
        self.tables = FakeTables(self.log)
        self.pools: dict[str, list[UpstreamSpec]] = {}  # what was changed of them
        tables = cast(Tables, self.tables)
        self.steering = Steering(config, tables, geo, self.tell, path, change_pool=self.change_pool)
        self.steering.begin()
        self.begun = list(self.log)
        self.log.clear()

    def tell(self, rules: list[Rule]) -> None:
        self.log.append(("rules", rules))

    def change_pool(self, name: str, specs: list[UpstreamSpec]) -> Callable[[], None]:
        if any("production" in spec.address for spec in specs):
            raise UpstreamError("upstream 'production:80' is the production address 198.51.100.99:80: choose another")
        self.log.append((f"pool {name}", specs))
        self.pools[name], before = specs, self.pools.get(name, [])
        return lambda: self.pools.update({name: before})

    @property
    def steps(self) -> list[str]:
        return [what for what, _ in self.log]

    @property
    def told(self) -> list[Rule]:
        """The rules that the workers were told last."""
        return next(rules for what, rules in reversed(self.log) if what == "rules")

    def shadow(self, name: str) -> Any:
        return self.steering.config.shadows[name]

    def refuses(self, call: Callable[[], object], says: str) -> None:
        """One ConfigError, and all is as it was."""
        before = self.steering.config, self.steering.selection, self.tables.enabled, self.tables.selection
        with pytest.raises(ConfigError, match=says):
            call()
        assert (self.steering.config, self.steering.selection, self.tables.enabled, self.tables.selection) == before
        in_force = [shadow.rule for shadow in Order.of(self.steering.config).shadows]
        assert "rules" not in self.steps or self.told == in_force, "what the workers were told is taken back"


@pytest.fixture
def bench() -> Bench:
    return Bench(parse(TEXT, "f.yaml"))


def test_it_begins_with_the_tables_and_then_turns_on(bench: Bench) -> None:
    (first, selection), second = bench.begun
    assert (first, second) == ("select", ("enabled", 0b101)), "the second is off"
    assert selection == bench.steering.selection == selection_of(Order.of(bench.steering.config), None)
    assert selection.windows == (Window(0, 100_000), Window(0, 200_000), Window(0, 300_000))
    assert selection.by_client == 0b100


def test_turning_off_is_one_store_before_anything_else(bench: Bench) -> None:
    bench.steering.change("one", {"enabled": False})
    assert bench.log[0] == ("enabled", 0b100)
    assert bench.steps == ["enabled", "rules"], "the tables are the same"
    assert [rule.enabled for rule in bench.told] == [False, False, True]
    assert not bench.shadow("one").enabled


def test_turning_on_comes_last(bench: Bench) -> None:
    """When everybody knows: the workers, then the tables, if they change, then the kernel's first packet."""
    bench.steering.change("two", {"enabled": True})
    assert bench.steps == ["rules", "enabled"]
    assert bench.log[-1] == ("enabled", 0b111)
    assert [rule.enabled for rule in bench.told] == [True, True, True]
    bench.steering.change("two", {"enabled": "no"})
    bench.log.clear()
    bench.steering.change("two", {"enabled": True, "criteria": "header:X-Other"})
    assert bench.steps == ["rules", "select", "enabled"]


def test_off_and_on_again_is_as_before(bench: Bench) -> None:
    before, selection = bench.steering.config, bench.steering.selection
    bench.steering.change("three", {"enabled": False})
    bench.steering.change("three", {"enabled": True})
    assert (bench.steering.config, bench.steering.selection, bench.tables.enabled) == (before, selection, 0b101)


def test_a_percentage_changes_in_the_kernel_and_in_the_workers(bench: Bench) -> None:
    bench.steering.change("one", {"percentage": 55.5})
    assert bench.tables.selection is bench.steering.selection
    assert bench.steering.selection.windows[0] == Window(0, 555_000)
    assert bench.told[0].window == Window(0, 555_000)
    assert bench.told[1:] == [shadow.rule for shadow in Order.of(bench.steering.config).shadows[1:]]
    assert bench.shadow("one").percentage == 55.5
    assert "enabled" not in bench.steps, "nobody went on or off"


def test_zero_percent_is_off_for_the_kernel(bench: Bench) -> None:
    bench.steering.change("one", {"percentage": 0})
    assert (bench.log[0], bench.tables.enabled) == (("enabled", 0b100), 0b100)
    assert bench.shadow("one").enabled
    bench.steering.change("one", {"percentage": 1})
    assert bench.log[-1] == ("enabled", 0b101)


def test_several_settings_at_once(bench: Bench) -> None:
    fields = {
        "enabled": True, "percentage": 5, "criteria": {"type": "HEADER", "value": "X-Other=1"},
        "sample_by": "COOKIE:id", "exclusive": "green", "methods": ["POST"],
        "upstreams": ["198.51.100.9:80"],
    }  # fmt: skip
    assert set(fields) == set(CHANGEABLE)
    bench = Bench(parse(TEXT.replace("two: {", "two: {upstreams: ['198.51.100.2:80'], "), "f.yaml"))
    bench.steering.change("two", fields)
    assert bench.pools == {"two": [UpstreamSpec("198.51.100.9:80")]}
    rule = bench.told[1]
    assert (rule.enabled, rule.window, rule.methods) == (True, Window(0, 50_000), ("POST",))
    assert (rule.criteria, rule.by, rule.name) == (criteria("header:X-Other=1"), By.COOKIE, "id")
    assert bench.steering.selection.windows[1] == EVERYTHING, "the kernel sees no cookies' shares"
    assert bench.shadow("two").group == "green"


def test_an_exclusive_group_is_worked_out_anew(bench: Bench) -> None:
    bench.steering.change("one", {"exclusive": "blue", "sample_by": "client"})
    assert [rule.window for rule in bench.told] == [Window(0, 100_000), Window(0, 200_000), Window(100_000, 400_000)]
    assert bench.steering.selection.windows == tuple(rule.window for rule in bench.told)
    bench.steering.change("one", {"percentage": 40})
    assert bench.told[2].window == Window(400_000, 700_000)


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("four", {"enabled": False}, "no shadow 'four'; there is one, two, three"),
        ("one", {"max_connections": 9, "x": 1}, "^max_connections, x: not changeable at run time; enabled, percentage"),
        (
            "one",
            {"percentage": 101},
            r"^the change: shadows\.one\.percentage: input should be less than or equal to 100",
        ),
        ("one", {"percentage": "many"}, r"^the change: shadows\.one\.percentage: "),
        ("one", {"enabled": "perhaps"}, r"^the change: shadows\.one\.enabled: input should be a valid boolean"),
        ("one", {"enabled": False, "percentage": -1}, r"^the change: shadows\.one\.percentage: "),
        ("one", {"criteria": "header:"}, r"^the change: shadows\.one\.criteria: .*, at column 8"),
        ("one", {"criteria": None}, r"^the change: shadows\.one\.criteria: "),
        ("one", {"criteria": "geo:US"}, r"shadows\.one\.criteria asks for a country: set geo\.database"),
        ("one", {"sample_by": "header"}, r"^the change: shadows\.one\.sample_by: give header:NAME"),
        ("one", {"methods": ["A B"]}, "is not an HTTP method"),
        ("one", {"exclusive": "blue"}, "all of group 'blue' need the same sample_by"),
        ("one", {"exclusive": "blue", "sample_by": "client", "percentage": 71}, "group 'blue' come to more than 100"),
    ],
)
def test_what_does_not_fit_changes_nothing(bench: Bench, name: str, fields: dict[str, Any], says: str) -> None:
    bench.refuses(lambda: bench.steering.change(name, fields), says)
    assert bench.log == []


@pytest.mark.parametrize(
    "fields", [{"enabled": False, "methods": ["PUT"]}, {"criteria": "cidr:11.0.0.0/8"}, {"percentage": 0}]
)
def test_where_the_kernel_has_no_room_nothing_changes(bench: Bench, fields: dict[str, Any]) -> None:
    bench.tables.full = True
    bench.refuses(lambda: bench.steering.change("one", fields), "the kernel has no room for the .* prefixes .*No space")
    bench.tables.full = False
    bench.steering.change("one", fields)
    assert bench.steps[-2:] == ["rules", "select"]


TWO_POOLS = TEXT.replace("two: {", "two: {upstreams: ['198.51.100.2:80'], ")


def test_a_pool_is_changed_before_the_rules() -> None:
    bench = Bench(parse(TWO_POOLS, "f.yaml"))
    upstreams = ["198.51.100.1:80", {"address": "198.51.100.5:80", "weight": 3, "cookie": "c"}]
    bench.steering.change("one", {"upstreams": upstreams})
    assert bench.steps == ["pool one", "rules", "select"]
    assert bench.pools == {"one": [UpstreamSpec("198.51.100.1:80"), UpstreamSpec("198.51.100.5:80", 3, "c")]}
    assert [shadow["upstreams"] for shadow in bench.steering.status()] == [upstreams, ["198.51.100.2:80"], []]
    bench.log.clear()
    bench.steering.change("one", {"upstreams": upstreams, "percentage": 5})
    assert bench.steps == ["rules", "select"], "the pool is the same"


@pytest.mark.parametrize(
    ("name", "upstreams", "says"),
    [
        ("one", ["production:80"], "shadows.one: upstream 'production:80' is the production address"),
        ("one", ["198.51.100.1"], r"shadows\.one\.upstreams\.0\.address: .*the port is missing"),
        ("one", [{"address": "198.51.100.1:80", "weight": -1}], r"shadows\.one\.upstreams\.0\.weight: "),
        ("one", [], r"shadows\.one\.upstreams: from or to none at all takes a restart"),
        ("three", ["198.51.100.3:80"], r"shadows\.three\.upstreams: from or to none at all takes a restart"),
    ],
)
def test_a_pool_that_cannot_be_changes_nothing(name: str, upstreams: list[Any], says: str) -> None:
    bench = Bench(parse(TWO_POOLS, "f.yaml"))
    bench.refuses(lambda: bench.steering.change(name, {"upstreams": upstreams, "percentage": 3}), says)
    assert bench.pools == {}


def test_a_pool_is_taken_back_where_the_kernel_has_no_room() -> None:
    bench = Bench(parse(TWO_POOLS, "f.yaml"))
    bench.steering.change("one", {"upstreams": ["198.51.100.5:80"]})
    bench.tables.full = True
    changes = {"upstreams": ["198.51.100.6:80"], "percentage": 5}
    bench.refuses(lambda: bench.steering.change("one", changes), "the kernel has no room")
    assert bench.pools == {"one": [UpstreamSpec("198.51.100.5:80")]}


def test_pools_are_changed_together_or_not_at_all(tmp_path: Path) -> None:
    bench, path = from_file(tmp_path, TWO_POOLS)
    text = TWO_POOLS.replace("198.51.100.1:80", "198.51.100.7:80")
    path.write_text(text.replace("198.51.100.2:80", "production:80"))
    bench.refuses(bench.steering.reload, r"shadows\.two: upstream 'production:80' is")
    assert bench.pools == {"one": []}, "taken back"
    path.write_text(text)
    assert bench.steering.reload() == []
    assert bench.pools == {"one": [UpstreamSpec("198.51.100.7:80")]}


def test_no_room_at_the_start_is_an_error_of_the_configuration() -> None:
    tables = FakeTables([])
    tables.full = True
    steering = Steering(parse(TEXT, "f.yaml"), cast(Tables, tables), None, lambda rules: None)
    with pytest.raises(ConfigError, match="ask for fewer countries or networks"):
        steering.begin()
    assert tables.enabled == 0


def test_the_status_tells_what_is_in_force(bench: Bench) -> None:
    bench.steering.change("three", {"percentage": 12.5, "exclusive": True})
    one, _, three = bench.steering.status()
    assert one == {
        "name": "one", "enabled": True, "percentage": 10, "criteria": "random", "sample_by": "connection",
        "exclusive": False, "methods": ["GET", "HEAD", "OPTIONS"], "upstreams": ["198.51.100.1:80"],
        "places_ppm": (0, 100_000),
    }  # fmt: skip
    assert (three["name"], three["criteria"], three["exclusive"]) == ("three", "cidr:10.0.0.0/8", True)
    assert three["places_ppm"] == (0, 125_000)


def from_file(tmp_path: Path, text: str = TEXT) -> tuple[Bench, Path]:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    return Bench(load(path), path=path), path


def test_a_reload_takes_over_what_can_be_changed(tmp_path: Path) -> None:
    bench, path = from_file(tmp_path)
    path.write_text(TEXT.replace("percentage: 10", "mirrorPercentage: 15").replace("enabled: false", "methods: [PUT]"))
    assert bench.steering.reload() == []
    assert bench.steps == ["rules", "select", "enabled"]
    assert [rule.window.to_ppm for rule in bench.told] == [150_000, 200_000, 300_000]
    assert (bench.tables.enabled, bench.told[1].methods) == (0b111, ("PUT",))
    assert bench.steering.config == load(path)


def test_a_reload_takes_back_what_was_changed_since(tmp_path: Path) -> None:
    bench, path = from_file(tmp_path)
    bench.steering.change("two", {"enabled": True, "percentage": 99})
    assert bench.steering.reload() == []
    assert (bench.steering.config, bench.tables.enabled) == (load(path), 0b101)


def test_a_reload_says_what_needs_a_restart(tmp_path: Path) -> None:
    bench, path = from_file(tmp_path)
    text = TEXT.replace("ports: [80]", "ports: [80, 81]").replace(
        "percentage: 10,", "max_connections: 9, percentage: 10,"
    )
    path.write_text(text.replace("percentage: 10", "percentage: 15") + "seed: 5\n")
    notes = bench.steering.reload()
    assert notes == [f"{key}: a change there needs a restart" for key in ("capture", "shadows", "seed")]
    assert bench.shadow("one").percentage == 15
    assert bench.shadow("one").max_connections == 64
    assert (bench.steering.config.capture.ports, bench.steering.config.seed) == ([80], 0)
    assert bench.steering.reload() == notes, "it still does"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEXT.replace("  two:", "  four:"), r"f\.yaml: shadows were added, removed or moved: restart the agent"),
        (TEXT + "  four: {}\n", "added, removed or moved"),
        (TEXT[: TEXT.index("  three:")], "added, removed or moved"),
        (TEXT.replace("percentage: 10", "percentage: 1000"), r"f\.yaml: shadows\.one\.percentage: "),
        (TEXT.replace("header:X-Test", "header:"), r"f\.yaml: shadows\.two\.criteria: "),
        (TEXT.replace("header:X-Test", "geo:US"), r"f\.yaml: .* asks for a country"),
        ("shadows: [", r"f\.yaml:1:11: not valid YAML"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(tmp_path: Path, text: str, says: str) -> None:
    bench, path = from_file(tmp_path)
    path.write_text(text)
    bench.refuses(bench.steering.reload, says)
    assert bench.log == []


def test_a_file_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    bench, path = from_file(tmp_path)
    path.unlink()
    bench.refuses(bench.steering.reload, r"f\.yaml: No such file or directory")
    other = Bench(parse(TEXT, "f.yaml"))
    other.refuses(other.steering.reload, "was not read from a file")


@pytest.mark.parametrize(
    ("more", "shares_in_kernel", "by_client", "addressed"),
    [
        ("", True, 0b10, True),
        ("client: {trusted: [10.0.0.0/8]}\n", True, 0b10, True),
        ("client: {source: proxy_protocol}\n", False, 0, False),
        ("client: {source: X-Forwarded-For, trusted: [10.0.0.0/8]}\n", False, 0, False),
    ],
)
def test_what_is_known_of_clients_in_the_kernel(
    more: str, shares_in_kernel: bool, by_client: int, addressed: bool
) -> None:
    """Behind another balancer: neither their shares nor their addresses; connections' shares always are."""
    text = """
capture: {interface: lo, ports: [80]}
shadows:
  one: {percentage: 10, criteria: "cidr:10.0.0.0/8 and header:X-Test"}
  two: {percentage: 20, sample_by: client}
  three: {percentage: 30, sample_by: request}
"""
    selection = selection_of(Order.of(parse(text + more, "f.yaml")), None)
    clients = Window(0, 200_000) if shares_in_kernel else EVERYTHING
    assert selection.windows == (Window(0, 100_000), clients, EVERYTHING)
    assert selection.by_client == by_client
    assert (selection.address_tests != (), len(selection.head_tests)) == (addressed, 1)


GEO = """
capture: {interface: lo, ports: [80]}
shadows: {one: {criteria: "geo:US"}}
"""


@pytest.fixture
def located(tmp_path: Path) -> Bench:
    path = write(tmp_path / "world.mmdb", [("8.0.0.0/8", US), ("2.160.0.0/12", DE)])
    return Bench(parse(GEO + f"geo: {{database: {path}}}\n", "f.yaml"), GeoDatabase(path))


def prefixes(bench: Bench) -> set[tuple[int, str]]:
    """IPv4 networks whose clients may be wanted."""
    selection = bench.steering.selection
    return {
        (key[0], ".".join(map(str, key[4:]))) for key, mask in selection.prefixes4.items() if selection.possible[mask]
    }


def test_countries_come_from_the_database(located: Bench) -> None:
    assert prefixes(located) == {(8, "8.0.0.0")}
    located.steering.change("one", {"criteria": "geo:DE"})
    assert prefixes(located) == {(12, "2.160.0.0")}


def test_a_new_database_is_taken_over(located: Bench, tmp_path: Path) -> None:
    assert located.steering.look_at_geography() == ""
    assert located.log == []
    write(tmp_path / "world.mmdb", [("9.0.0.0/8", US)])
    assert located.steering.look_at_geography() == ""
    assert located.steps == ["rules", "select"]
    assert prefixes(located) == {(8, "9.0.0.0")}
    assert located.steering.look_at_geography() == ""
    assert located.steps == ["rules", "select"]


def test_a_broken_database_is_told_once_and_changes_nothing(located: Bench, tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"this is none")
    (tmp_path / "new").rename(tmp_path / "world.mmdb")
    assert "not a database in MaxMind's format" in located.steering.look_at_geography()
    assert located.steering.look_at_geography() == ""
    assert located.log == []
    assert prefixes(located) == {(8, "8.0.0.0")}


def test_a_new_database_that_cannot_be_used_does_not_end_the_agent(located: Bench, tmp_path: Path) -> None:
    before = located.steering.selection
    located.tables.full = True
    write(tmp_path / "world.mmdb", [("9.0.0.0/8", US)])
    assert "the kernel has no room" in located.steering.look_at_geography()
    loop = write(tmp_path / "loop", [("8.0.0.0/8", US)], version=4)
    data = bytearray(loop.read_bytes())
    data[3:6] = b"\0\0\0"  # see test_geo.py
    loop.write_bytes(data)
    loop.rename(tmp_path / "world.mmdb")
    located.tables.full = False
    assert "its tree has loops" in located.steering.look_at_geography()
    assert (located.steering.selection, located.tables.enabled) == (before, 1)
    assert located.steps == ["rules", "rules"], "the first was taken back"
    located.refuses(lambda: located.steering.change("one", {"percentage": 5}), "its tree has loops")
    located.steering.change("one", {"enabled": False})
    assert located.tables.enabled == 0, "a shadow can be turned off whatever else is wrong"


def test_without_a_database_there_is_nothing_to_look_at(bench: Bench) -> None:
    assert bench.steering.look_at_geography() == ""
    assert bench.log == []


# Overrides, pauses, switches


def test_an_override_is_in_force_and_what_is_configured_stays(bench: Bench) -> None:
    bench.steering.override("one", {"percentage": 3.0})
    assert (bench.shadow("one").percentage, bench.steering.configured.shadows["one"].percentage) == (3, 10)
    assert bench.told[0].window == Window(0, 30_000)
    assert bench.steering.overridden("one") == {"percentage": 3.0}
    one, two, _ = bench.steering.status()
    assert (one["percentage"], one["configured"], "configured" in two) == (3, {"percentage": 10}, False)
    bench.steering.change("one", {"percentage": 50, "methods": ["GET"]})
    assert (bench.shadow("one").percentage, bench.shadow("one").methods) == (3, ["GET"])
    bench.log.clear()
    bench.steering.override("one", {"percentage": 3.0})
    assert bench.log == [], "it is there already"
    bench.steering.override("one", {})
    assert bench.shadow("one").percentage == 50
    assert bench.steering.config == bench.steering.configured


def test_an_override_outlives_a_reload(tmp_path: Path) -> None:
    bench, path = from_file(tmp_path)
    bench.steering.override("one", {"enabled": False})
    path.write_text(TEXT.replace("percentage: 10", "percentage: 15"))
    assert bench.steering.reload() == []
    assert (bench.tables.enabled, bench.steering.configured.shadows["one"].percentage) == (0b100, 15)
    bench.steering.override("one", {})
    assert (bench.tables.enabled, bench.shadow("one").percentage) == (0b101, 15)


def test_an_override_for_which_there_is_no_room_changes_nothing(bench: Bench) -> None:
    bench.tables.full = True
    bench.refuses(lambda: bench.steering.override("one", {"percentage": 3.0}), "the kernel has no room")
    assert bench.steering.overridden("one") == {}
    bench.refuses(lambda: bench.steering.override("one", {"percentage": 300.0}), "what is in force: shadows")


def test_a_switch_off_holds_until_an_override_succeeds(bench: Bench) -> None:
    bench.steering.switch_off("one")
    assert bench.log == [("enabled", 0b100)]
    bench.steering.pause(True)
    bench.steering.pause(False)
    bench.steering.change("two", {"percentage": 3})
    bench.tables.full = True
    with pytest.raises(ConfigError):
        bench.steering.override("one", {"percentage": 4.0})
    assert [mask for step, mask in bench.log if step == "enabled" and mask & 1] == []
    bench.tables.full = False
    bench.steering.override("one", {})
    assert bench.tables.enabled == 0b101


def test_while_paused_nothing_is_copied_whatever_changes(bench: Bench) -> None:
    bench.steering.pause(True)
    bench.steering.change("two", {"enabled": True})
    bench.steering.change("one", {"percentage": 3})
    bench.steering.override("three", {"percentage": 3.0})
    bench.steering.override("one", {"enabled": False})
    assert [mask for step, mask in bench.log if step == "enabled"] == [0]
    bench.steering.pause(False)
    assert bench.tables.enabled == 0b110


def test_before_the_beginning_nothing_is_copied() -> None:
    tables = FakeTables([])
    steering = Steering(parse(TEXT, "f.yaml"), cast(Tables, tables), None, lambda rules: None)
    steering.override("three", {"percentage": 3.0})
    steering.override("one", {"enabled": False})
    steering.pause(False)
    assert [mask for step, mask in tables.log if step == "enabled"] == []
    steering.begin()
    assert tables.enabled == 0b100
    assert tables.selection == steering.selection


def test_several_shadows_are_changed_together_or_not_at_all(bench: Bench) -> None:
    bench.steering.change_all({"one": {"percentage": 1}, "two": {"enabled": True}})
    assert (bench.shadow("one").percentage, bench.tables.enabled) == (1, 0b111)
    bench.refuses(
        lambda: bench.steering.change_all({"one": {"percentage": 2}, "two": {"percentage": 101}}), "less than or equal"
    )
    assert bench.steering.configured.shadows["one"].percentage == 1


def test_a_switch_off_that_is_refused_is_taken_back(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="no shadow"):
        bench.steering.change("four", {"enabled": False})
    assert bench.tables.enabled == 0b101


NAMES = st.sampled_from(["one", "two", "three"])
SHARES = st.sampled_from([0.0, 1.0, 5.0, 60.0])
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "enabled": st.booleans(),
        "percentage": SHARES,
        "criteria": st.sampled_from(["random", "cidr:10.0.0.0/8"]),
        "exclusive": st.sampled_from([False, "blue"]),
        "sample_by": st.sampled_from(["client", "connection"]),
    },
)


PLAIN = TEXT.replace("header:X-Test", "cidr:12.0.0.0/8")  # whose automaton takes long to make


class AnyOrder(RuleBasedStateMachine):
    """Trips, overrides, changes, reloads and pauses in any order, with and without room in the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.bench, self.path = from_file(self.directory, PLAIN)
        self.off: set[str] = set()  # tripped
        self.paused = False
        self.versions = [self.bench.steering.configured]

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    def tried(self, call: Callable[[], object]) -> bool:
        steering = self.bench.steering
        names = list(steering.config.shadows)
        before = steering.configured, steering.config, [steering.overridden(name) for name in names]
        try:
            call()
        except ConfigError:
            after = steering.configured, steering.config, [steering.overridden(name) for name in names]
            assert after == before
            return False
        self.versions.append(steering.configured)
        return True

    @rule(name=NAMES)
    def trip(self, name: str) -> None:
        self.off.add(name)
        before = self.bench.tables.enabled
        self.bench.steering.switch_off(name)
        assert self.bench.tables.enabled & ~before == 0
        self.tried(lambda: self.bench.steering.override(name, {"enabled": False}))

    @rule(name=NAMES)
    def reset(self, name: str) -> None:
        if self.tried(lambda: self.bench.steering.override(name, {})):
            self.off.discard(name)

    @rule(name=NAMES, percentage=SHARES)
    def ramp(self, name: str, percentage: float) -> None:
        if name not in self.off:
            self.tried(lambda: self.bench.steering.override(name, {"percentage": percentage}))

    @rule(name=NAMES, fields=FIELDS)
    def change(self, name: str, fields: dict[str, Any]) -> None:
        if self.tried(lambda: self.bench.steering.change(name, fields)):
            found = self.bench.steering.configured.shadows[name]
            assert {key: getattr(found, key) for key in fields} == fields

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.versions))
        sections = {
            name: {key: shadow[key] for key in CHANGEABLE}
            for name, shadow in version.model_dump(mode="json", by_alias=True)["shadows"].items()
        }
        if self.tried(lambda: self.bench.steering.change_all(sections)):
            assert self.bench.steering.configured == version

    @rule(percentage=SHARES)
    def reload(self, percentage: float) -> None:
        self.path.write_text(PLAIN.replace("percentage: 20", f"percentage: {percentage}"))
        if self.tried(self.bench.steering.reload):
            assert self.bench.steering.configured == load(self.path)

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.paused = paused
        self.bench.steering.pause(paused)

    @rule(full=st.booleans())
    def fill(self, full: bool) -> None:
        self.bench.tables.full = full

    @invariant()
    def what_is_off_is_off(self) -> None:
        steering, log = self.bench.steering, self.bench.log
        enabled = {name for place, name in enumerate(steering.config.shadows) if self.bench.tables.enabled >> place & 1}
        wanted = {name for name, shadow in steering.config.shadows.items() if shadow.enabled and shadow.share_ppm}
        assert enabled == (set() if self.paused else wanted - self.off)
        for mask in (mask for step, mask in log if step == "enabled"):
            now = {name for place, name in enumerate(steering.config.shadows) if mask >> place & 1}
            assert not now & self.off_throughout(), "not for a moment"
        log[:] = [each for each in log if each[0] != "enabled"]
        self.off_before = set(self.off)

    def off_throughout(self) -> set[str]:
        return self.off & getattr(self, "off_before", set())

    @invariant()
    def what_is_in_force_is_what_is_configured_and_overridden(self) -> None:
        steering = self.bench.steering
        data = steering.configured.data
        for name in data["shadows"]:
            data["shadows"][name] |= steering.overridden(name)
        assert steering.config == validated(data, "expected")
        order = Order.of(steering.config)
        assert self.bench.tables.selection == selection_of(order, None) == steering.selection
        if "rules" in self.bench.steps:
            assert self.bench.told == [shadow.rule for shadow in order.shadows]


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis_settings(max_examples=40, stateful_step_count=20, deadline=None)
