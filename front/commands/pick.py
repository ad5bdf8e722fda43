"""Choose a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from front.commands.arguments import add_choice, add_out, choose
from front.commands.command import Command, empty_folder, say
from front.describe import member_text
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
    say(member_text(front, member))
    if args.out is not None:
        from front.export import write_folder

        write_folder(empty_folder(args.out), front, member)
        say(f"wrote {args.out}: pipe.load_lora_weights({str(args.out)!r})")


COMMAND = Command(
    summary="the best policy under a preference", add_arguments=_add_arguments, run=run
)
