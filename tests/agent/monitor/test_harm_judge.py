"""Whether mirroring slows production down: said when it does, kept across restarts, and forgiven by a person."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agent import messages
from agent.monitor.harm_judge import HarmJudge
from agent.monitor.judging import ShadowJudge
from tests.agent.monitor.test_judging import DAMAGES, an_order

S = 1_000_000_000


def blocks(judge: HarmJudge, count: int, slower: float = 0.0, seed: int = 1) -> None:
    """Pairs of blocks; the numbers are logs of a ratio."""
    chance = random.Random(seed)
    for number in range(count):
        judge.take({name: slower + chance.gauss(0, 0.05) for name in ("harm_tail", "harm_level")}, number * S)


def test_before_any_block_nothing_is_known() -> None:
    judge = HarmJudge(None)
    assert not judge.begun
    assert judge.message()["word"] == "inconclusive" and not judge.message()["rollback"]


def test_harm_is_found_and_the_message_says_how_much() -> None:
    judge = HarmJudge(None)
    blocks(judge, 40, slower=0.3)
    message = judge.message()
    assert judge.begun and messages.fits({"harm": message})
    assert (message["word"], message["rollback"]) == ("fail", True)
    assert {each["metric"] for each in message["findings"]} == {"harm_tail", "harm_level"}
    assert all(each["effect"] == pytest.approx(0.3, abs=0.1) for each in message["findings"])


def test_mirroring_that_does_nothing_is_never_blamed() -> None:
    for seed in range(3):
        judge = HarmJudge(None)
        for part in range(10):
            blocks(judge, 20, seed=100 * seed + part)
            assert judge.message()["word"] != "fail"


def test_mirroring_that_does_nothing_passes_in_the_end() -> None:
    judge = HarmJudge(None)
    blocks(judge, 200)
    assert judge.message()["word"] == "pass"


def test_the_evidence_goes_on_after_a_restart(tmp_path: Path) -> None:
    before = HarmJudge(tmp_path)
    blocks(before, 40, slower=0.3)
    before.keep()
    after = HarmJudge(tmp_path)
    assert after.begun and after.message() == before.message()
    blocks(before, 5, seed=2)
    blocks(after, 5, seed=2)
    assert after.message() == before.message()


def test_what_was_forgiven_is_not_brought_back_by_a_crash(tmp_path: Path) -> None:
    judge = HarmJudge(tmp_path)
    blocks(judge, 40, slower=0.3)
    judge.keep()
    judge.forget()
    assert not judge.begun and not judge.message()["rollback"]
    assert not HarmJudge(tmp_path).begun


def test_a_process_that_saw_no_block_leaves_the_file_alone(tmp_path: Path) -> None:
    HarmJudge(tmp_path).keep()
    assert list(tmp_path.iterdir()) == []


def test_a_shadow_called_harm_has_another_file(tmp_path: Path) -> None:
    judge = HarmJudge(tmp_path)
    blocks(judge, 40, slower=0.3)
    judge.keep()
    shadow = ShadowJudge("harm", tmp_path)
    shadow.begin(an_order(), 0)
    shadow.keep()
    assert HarmJudge(tmp_path).message() == judge.message()


@pytest.mark.parametrize("content", [*DAMAGES, b'{"version": 1e999}', b'{"version": 1}'], ids=lambda c: repr(c)[:12])
def test_a_damaged_file_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "harm.json"
    path.mkdir() if content is None else path.write_bytes(content)
    judge = HarmJudge(tmp_path)
    assert not judge.begun
    blocks(judge, 1)
    judge.keep()
    assert judge.problem == (
        "" if content is not None else f"{path}: Is a directory: the do-no-harm check's evidence is not kept"
    )
