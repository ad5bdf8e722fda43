"""Upload a front or one adapter to a hub."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from front.commands.arguments import add_blend, add_choice, choose_or_blend
from front.commands.command import Command, say
from front.front import Front
from front.tables import file_size

if TYPE_CHECKING:
    import argparse


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_choice(parser)
    add_blend(parser)
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="made if absent")
    parser.add_argument("--private", action="store_true", help="if the repository is made now")
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be uploaded; nothing is sent"
    )


def run(args: argparse.Namespace) -> None:
    """Upload the whole front as one repository, or the one adapter that is chosen.

    Needs a token that may write: `hf auth login`, or HF_TOKEN.
    """
    from front import hub

    hub.check_repo(args.repo)
    front = Front.load(args.run)
    is_named = args.weights is not None or args.policy is not None or args.at_least
    is_one = is_named or args.blend or args.member
    member = choose_or_blend(front, args) if is_one else None
    if args.dry_run:
        with TemporaryDirectory() as folder:
            for path in hub.write_repository(Path(folder), front, member, args.repo):
                say(f"{file_size((Path(folder) / path).stat().st_size):>8}  {path}")
        say(f"nothing was sent to {args.repo}")
        return
    say(f"uploaded {hub.push(front, member, args.repo, is_private=args.private)}")


COMMAND = Command(summary="upload to a hub", add_arguments=_add_arguments, run=run)
