"""`shadowtap explain`: what of the criteria the kernel decides, what is left to user space, and what it costs."""

from __future__ import annotations

from pathlib import Path

from agent import config
from agent.control.steering import selection_of
from agent.order import Order, ShadowOrder
from agent.select.automaton import Automaton
from agent.select.criteria import Always, And, Criteria, Head, Not, Or, leaves
from agent.select.geo import GeoDatabase
from agent.select.language import write
from agent.select.superset import Selection
from agent.shadow_config import Shadow

# Nanoseconds a segment on a virtual machine of 2026 (`make bench`, scenarios a and h): for orders of magnitude.
UNSAMPLED_NS, ADDRESS_NS, HEAD_NS, HEAD_BYTE_NS, COPY_NS = 30, 60, 180, 3.6, 80
USUAL_HEAD_BYTES = 500
LPM_NODE_BYTES = {4: 40, 6: 56}  # kernel/bpf/lpm_trie.c: a node, its prefix and its value, as slab objects


def explain(path: Path) -> list[str]:
    """Lines for people; ConfigError as `check`."""
    found = config.load(path)
    order = Order.of(found)
    geo = GeoDatabase(found.geo.database) if found.geo is not None else None
    selection = selection_of(order, geo)
    lines = [f"{path}"]
    for shadow in order.shadows:
        in_kernel = order.samples_in_kernel(shadow.rule)
        lines += _shadow(found.shadows[shadow.name], shadow, selection, in_kernel=in_kernel)
    return [*lines, *_tables(selection), *_costs(selection)]


def _shadow(shadow: Shadow, order: ShadowOrder, selection: Selection, *, in_kernel: bool) -> list[str]:
    rule = order.rule
    places = f"places {rule.window.from_ppm} to {rule.window.to_ppm} of 1 000 000"
    percentage = "in the kernel" if in_kernel else "in user space"
    lines = [f"shadow {order.name}{'' if shadow.enabled else ' (disabled)'}"]
    what = f"{rule.by}:{rule.name}" if rule.name else rule.by
    lines.append(f"  percentage  {shadow.percentage:g} % by {what}: {percentage}, {places}")
    if isinstance(shadow.tree, Always):
        return [*lines, "  criteria    none: every request"]
    lines.append(f"  criteria    {write(shadow.tree)}")
    lines.append(f"  kernel      {_as_seen(shadow.tree, selection)}")
    return [*lines, "  user space  decides exactly on what the kernel lets through"]


def _as_seen(tree: Criteria, selection: Selection, negated: bool = False) -> str:
    """The criteria as the kernel knows them; `?` is what it takes for true."""
    if _by_address(tree):
        return _address_part(tree, selection, negated)
    if isinstance(tree, Not):
        return _as_seen(tree.child, selection, not negated)
    if isinstance(tree, And | Or):
        parts = [_as_seen(child, selection, negated) for child in tree.children]
        word = " and " if isinstance(tree, And) != negated else " or "
        return f"({word.join(parts)})"
    if isinstance(tree, Head):
        return "?" if negated or tree not in selection.head_tests or _is_coarser(tree, selection) else write(tree)
    if isinstance(tree, Always):
        return write(Not(tree)) if negated else write(tree)
    return "?"


def _is_coarser(test: Head, selection: Selection) -> bool:
    """The automaton says "maybe" where the test says no: a note tells more."""
    automaton = selection.automaton
    return automaton is not None and selection.head_tests.index(test) in automaton.coarser


def _by_address(tree: Criteria) -> bool:
    return not any(isinstance(leaf, Head | Always) for leaf in leaves(tree))


def _address_part(tree: Criteria, selection: Selection, negated: bool) -> str:
    """A part that the client's address decides: it has a test of its own, or is within one, or there was no room."""
    shown = write(Not(tree) if negated else tree)
    if any(leaf in set(leaves(part)) for part in selection.address_tests for leaf in leaves(tree)):
        return f"({shown})" if isinstance(tree, And | Or) else shown
    return "?"


def _tables(selection: Selection) -> list[str]:
    lines = ["tables in the kernel (twice, so that a change can be written beside what decides)"]
    four, six = len(selection.prefixes4), len(selection.prefixes6)
    memory = (four * LPM_NODE_BYTES[4] + six * LPM_NODE_BYTES[6]) / (1 << 20)
    tests = len(selection.address_tests)
    lines.append(f"  addresses   {tests} test(s), {four} IPv4 and {six} IPv6 prefixes, about {memory:.1f} MiB")
    automaton: Automaton | None = selection.automaton
    if automaton is None:
        lines.append("  heads       none: connections are taken or left as a whole")
    else:
        lines.append(
            f"  heads       {len(selection.head_tests)} test(s), an automaton of {automaton.states} states and "
            f"{automaton.classes_used} byte classes, {automaton.states * 128 / 1024:.0f} KiB"
        )
    return lines + [f"  coarser     {note}" for note in selection.notes]


def _costs(selection: Selection) -> list[str]:
    known = UNSAMPLED_NS + (ADDRESS_NS if selection.address_tests else 0)
    lines = ["estimated cost of a segment on a watched port, on top of what the hook itself costs"]
    lines.append(f"  outside the percentage      {UNSAMPLED_NS} ns")
    if selection.address_tests:
        lines.append(f"  unwanted by address         {known} ns")
    if selection.automaton is not None:
        head = known + HEAD_NS + HEAD_BYTE_NS * USUAL_HEAD_BYTES
        lines.append(f"  request unwanted by head    {head:.0f} ns with a head of {USUAL_HEAD_BYTES} bytes")
        lines.append(f"  answer to it                {known + HEAD_NS} ns")
        lines.append(f"  request copied              {head + COPY_NS:.0f} ns and more with its size")
        known += HEAD_NS
    return [*lines, f"  copied                      {known + COPY_NS} ns and more with its size"]
