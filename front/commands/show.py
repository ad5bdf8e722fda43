"""Print a front."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from front.commands.arguments import add_run
from front.commands.command import Command, say
from front.describe import front_text, summary
from front.front import Front

if TYPE_CHECKING:
    import argparse


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    """Print the front: every policy's weights, returns and size, and the quality of the whole."""
    front = Front.load(args.run)
    say(json.dumps(summary(front), indent=1) if args.json else front_text(front))


COMMAND = Command(summary="the front as a table", add_arguments=_add_arguments, run=run)
