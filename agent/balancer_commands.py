"""`shadowtap balancer diff | certificate`: the options; what they do stands in agent/balancer_report.py."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to those of the command line."""
    parser = commands.add_parser("balancer", help="what a shadow's balancer program runs, and how that differs")
    actions = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    diff = actions.add_parser(
        "diff",
        help="print what differs from production's configuration, line by line, with the reason",
        description=(
            "Derive the configuration that the shadow's balancer would run, have the program check it, and print every "
            "line that differs from the file it was made from, with the reason. Where `from` is a candidate and "
            "`production` is given, the candidate's differences from production come first: they are the experiment."
        ),
    )
    diff.add_argument("--whole", action="store_true", help="print the derived configuration itself")
    diff.set_defaults(run=_diff)
    certificate = actions.add_parser(
        "certificate",
        help="connect to a TLS address, and say what its certificate is worth",
        description=(
            "Connect to the address, ask for each name, and report protocol, cipher, validity and days to expiry. "
            "The system's store is trusted, or --ca."
        ),
    )
    certificate.add_argument("address", metavar="HOST:PORT")
    certificate.add_argument("--name", action="append", default=[], metavar="NAME", help="server name to ask for (SNI)")
    certificate.add_argument("--ca", type=Path, metavar="FILE", help="trust these instead of the system's")
    certificate.add_argument(
        "--proxy", action="store_true", help="begin with a PROXY header, as a shadow's own balancer wants it"
    )
    certificate.set_defaults(run=_certificate)
    diff.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="configuration (YAML)")
    diff.add_argument("name", nargs="?", metavar="NAME", help="the shadow; may be left out if one has a program")


def _diff(arguments: argparse.Namespace) -> int:
    from agent.balancer_report import print_diff

    return print_diff(arguments.config, arguments.name, whole=arguments.whole)


def _certificate(arguments: argparse.Namespace) -> int:
    from agent.balancer_report import print_certificates

    return print_certificates(arguments.address, arguments.name, arguments.ca, proxy=arguments.proxy)
