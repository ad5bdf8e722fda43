"""Write a run's page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from front.commands.arguments import add_run
from front.commands.command import Command, say

if TYPE_CHECKING:
    import argparse


def run(args: argparse.Namespace) -> None:
    """Write `report.html` into the run directory: one page, readable from disk.

    A run writes it after every generation and at its end; this command writes it again. During
    the run the page shows the selection set's results so far.
    """
    from front.report import write_report

    say(f"wrote {write_report(args.run)}")


COMMAND = Command(summary="a page to look at and choose from", add_arguments=add_run, run=run)
