"""The command line: `shadowtap run`, what is asked of a running agent (agent/control), and what works offline.

Set-up errors are one line on stderr and exit status 2; anything else is our bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.balancer_commands import add_parser
from agent.control.commands import add_parsers
from replay.errors import ShadowtapError

USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except ShadowtapError as error:
        print(f"shadowtap: {error}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left: say nothing more
        return 1
    except KeyboardInterrupt:
        return 130
    return status


class _Version(argparse.Action):
    """Looks the version up only when asked: the look-up costs the agent 4 MB."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *ignored: Any) -> None:
        from importlib.metadata import version

        print(f"shadowtap {version('shadowtap')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shadowtap",
        description="Mirrors a part of live HTTP traffic to a shadow host and says how the shadow compares.",
        epilog="Start with `shadowtap doctor`, then `shadowtap check -c FILE` and `shadowtap run -c FILE`; "
        "while it runs, `shadowtap status --watch`.",
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="mirror live traffic until SIGTERM or Ctrl-C",
        description=(
            "Attach to the interface and ports of the configuration and mirror to its shadow, until SIGTERM or Ctrl-C; "
            "then finish what is in flight and print the account of requests. Needs root to start."
        ),
    )
    run.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    run.set_defaults(run=_run)
    check = commands.add_parser("check", help="validate a configuration without attaching")
    check.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    check.set_defaults(run=_check)
    explain = commands.add_parser("explain", help="say what of the criteria the kernel decides, and what it costs")
    explain.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    explain.set_defaults(run=_explain)
    add_parsers(commands)
    add_parser(commands)
    doctor = commands.add_parser("doctor", help="say what this host lacks, and what to do about it")
    doctor.set_defaults(run=_doctor)
    _add_replay(
        commands.add_parser(
            "replay",
            help="read a capture file, and replay it to a shadow",
            description=(
                "Read exchanges out of a pcap or pcapng file (also gzip), replay the requests to a shadow with their "
                "original spacing, and compare. Only safe methods are replayed unless --methods says otherwise."
            ),
        )
    )
    compare = commands.add_parser("compare", help="how the shadow compares, from a recording directory")
    compare.add_argument("directory", type=Path, metavar="DIR")
    compare.add_argument("--json", action="store_true", help="machine-readable, on stdout; a list for several shadows")
    compare.set_defaults(run=_compare)
    return parser


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("capture", type=Path, metavar="CAPTURE", help="pcap or pcapng file, also .gz")
    parser.add_argument(
        "--to",
        action="append",
        default=[],
        metavar="http(s)://HOST:PORT",
        help="the shadow, also unix:/path; give it several times for a pool",
    )
    parser.add_argument(
        "--speed",
        default="1",
        metavar="N|max",
        help="1 keeps the original spacing (default), 2 is twice as fast, max does not wait",
    )
    parser.add_argument("--dry-run", action="store_true", help="replay nothing")
    parser.add_argument("--export", type=Path, metavar="FILE.jsonl", help="write each exchange as a JSON line")
    parser.add_argument("--record", type=Path, metavar="DIR", help="recording directory for `shadowtap compare`")
    parser.add_argument("--ports", default="", metavar="PORT[,PORT]", help="server ports (default: find out)")
    parser.add_argument(
        "--percentage",
        type=float,
        default=100.0,
        metavar="P",
        help="share of the traffic, the same that the live agent takes with the same seed (default 100)",
    )
    parser.add_argument(
        "--criteria", default="random", metavar="TEXT", help='which requests, like "header:X-Test and path:/api/*"'
    )
    parser.add_argument(
        "--sample-by",
        default="connection",
        metavar="WHAT",
        help="what the percentage takes as a whole: connection (default), client, request, header:NAME, cookie:NAME",
    )
    parser.add_argument("--geo-database", type=Path, metavar="FILE", help="MaxMind-format database for geo criteria")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling (default 0)")
    parser.add_argument("--methods", default="GET,HEAD,OPTIONS", metavar="M[,M]", help="methods that are replayed")
    parser.add_argument("--policy", default="round_robin", metavar="NAME", help="how a pool is balanced (round_robin)")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="trust these instead of the system's (https)")
    parser.add_argument("--insecure", action="store_true", help="do not verify certificates (https)")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds for an answer (default 10)")
    parser.add_argument("--max-connections", type=int, default=64, metavar="N", help="connections a shadow host")
    parser.add_argument("--body-limit", type=int, default=1 << 20, metavar="BYTES", help="kept of a message (1 MiB)")
    parser.add_argument("--hash-bodies", action="store_true", help="hash what is beyond the limit, too")
    parser.add_argument("--json", action="store_true", help="print the account as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_replay)


def _run(arguments: argparse.Namespace) -> int:
    from agent import config, service

    return service.run(config.load(arguments.config), arguments.config)


def _check(arguments: argparse.Namespace) -> int:
    from agent.check import check

    for line in check(arguments.config):
        print(line)
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from agent.explain import explain

    for line in explain(arguments.config):
        print(line)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from agent.doctor import examine, render

    findings = examine()
    print(render(findings))
    return 0 if all(finding.ok for finding in findings) else 1


def _replay(arguments: argparse.Namespace) -> int:
    from agent.playback import Playback, options_from

    status: int = Playback(options_from(arguments)).run()
    return status


def _compare(arguments: argparse.Namespace) -> int:
    import json

    from replay.compare import as_json, compare, recordings_in, render

    reports = [compare(directory) for directory in recordings_in(arguments.directory)]
    if arguments.json:
        data = [as_json(report) for report in reports]
        print(json.dumps(data[0] if len(data) == 1 else data, indent=2))
    else:
        print("\n\n".join(map(render, reports)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
