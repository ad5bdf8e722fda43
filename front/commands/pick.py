"""Choose a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from front.commands.arguments import add_choice, add_out, choose
from front.commands.command import Command, say
from front.commands.output import check_out, output_folder
from front.describe import loss_warnings, member_text
from front.front import Front

if TYPE_CHECKING:
    import argparse


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_choice(parser)
    add_out(parser)


def run(args: argparse.Namespace) -> None:
    """Print the policy that is best under a preference, in z-units on the report set."""
    front = Front.load(args.run)
    member = choose(front, args)
    check_out(args)
    say(member_text(front, member))
    for line in loss_warnings(front, member):
        say(line)
    if args.out is not None:
        from front.export import write_folder

        with output_folder(args) as folder:
            write_folder(folder, front, member)
        say(f"wrote {args.out}: pipe.load_lora_weights({str(args.out)!r})")


COMMAND = Command(
    summary="the best policy under a preference", add_arguments=_add_arguments, run=run
)
