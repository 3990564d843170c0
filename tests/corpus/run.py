"""Exports every capture of the corpus and scores the answers: `python tests/corpus/run.py [--corpus DIR] [--out DIR]`.

The corpus lies beside the project, not in it. Exit status 1 when the score is below the target or a capture crashed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from agent.capture.pcap import PcapSource
from agent.export import as_line
from agent.http.limits import HttpLimits
from agent.http.pairing import Pairing
from agent.offline import read_exchanges
from agent.stream.flows import Flows

DEFAULT_CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
TARGET_RATIO, EXTRA_RATIO = 0.95, 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=DEFAULT_CORPUS)
    parser.add_argument("--out", type=Path, help="where the answers go (default: a temporary directory)")
    arguments = parser.parse_args()
    if not (arguments.corpus / "score.py").exists():
        print(f"no corpus at {arguments.corpus}: nothing to score (give its directory with --corpus)")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        crashed = [path.name for path in captures(arguments.corpus) if not export(path, out)]
        return judge(arguments.corpus, out, crashed)


def captures(corpus: Path) -> list[Path]:
    """The capture files of the corpus."""
    return sorted(p for p in corpus.iterdir() if {".pcap", ".pcapng"} & set(p.suffixes))


def export(capture: Path, out: Path) -> bool:
    """Write the exchanges of one capture; False if that raised, or the account of requests does not close."""
    name = capture.name.split(".pcap")[0]
    finished_count = 0
    pairing = Pairing(HttpLimits(hash_bodies=True))
    try:
        with PcapSource(capture) as source, (out / f"{name}.jsonl").open("w") as file:
            for _, finished in read_exchanges(source, Flows(), pairing):
                finished_count += len(finished)
                file.writelines(as_line(exchange) + "\n" for exchange in finished)
    except Exception:
        print(f"{capture.name}: crashed")
        traceback.print_exc()
        return False
    if finished_count != pairing.seen or pairing.budget.kept_bytes:
        print(f"{capture.name}: {pairing.seen} seen, {finished_count} finished, {pairing.budget.kept_bytes} bytes kept")
        return False
    return True


def judge(corpus: Path, out: Path, crashed: list[str]) -> int:
    """Print the score and compare it with the target."""
    score = [sys.executable, str(corpus / "score.py"), str(out), "--truth", str(corpus)]
    subprocess.run([*score, "--show"], check=True)
    total = json.loads(subprocess.run([*score, "--json"], check=True, capture_output=True).stdout)["total"]
    good = (
        not crashed
        and total["requests_found"] >= TARGET_RATIO * total["requests"]
        and total["pairs_found"] >= TARGET_RATIO * total["pairs"]
        and total["extra"] <= EXTRA_RATIO * total["requests"]
    )
    print("corpus: target reached" if good else f"corpus: BELOW TARGET (crashed: {', '.join(crashed) or 'none'})")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
