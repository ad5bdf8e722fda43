"""Blend neighbours on a front."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from front.commands.arguments import add_out, add_run, numbers, positive
from front.commands.command import Command, say
from front.commands.output import check_out, output_folder
from front.describe import member_text
from front.front import Front

if TYPE_CHECKING:
    import argparse


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--weights", type=numbers, required=True, help="preference, sum 1: 0.3,0.7")
    parser.add_argument(
        "--rank", type=positive, help="reduce to this rank by SVD; the relative error is printed"
    )
    add_out(parser)


def run(args: argparse.Namespace) -> None:
    """Blend the neighbours on the front around a preference by adding their weight updates exactly.

    The blend's rank is the sum of its parts' ranks, unless --rank reduces it.
    """
    from ddpo.agents.adapter import Adapter

    front = Front.load(args.run)
    member = front.blend(args.weights)
    check_out(args)
    adapter, error = Adapter.of(member), 0.0
    if args.rank is not None:
        adapter, error = adapter.reduced(args.rank)
    if error:  # what was measured is not what is written
        member = dataclasses.replace(member, report_returns=None, report_std_error=None)
    say(member_text(front, member))
    reduced = f", reduced with a relative error of {error:.2g}" if error else ", exact"
    say(f"  rank {adapter.rank}{reduced}")
    if args.out is not None:
        from front.export import write_folder

        with output_folder(args) as folder:
            write_folder(folder, front, member, adapter, error=error)
        say(f"wrote {args.out}: pipe.load_lora_weights({str(args.out)!r})")


COMMAND = Command(
    summary="an exact blend of neighbours on the front", add_arguments=_add_arguments, run=run
)
