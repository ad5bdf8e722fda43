"""Write one adapter for another program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from front.commands.arguments import add_blend, add_choice, add_out, choose_or_blend
from front.commands.command import Command, say
from front.commands.output import check_out, output_folder
from front.describe import loss_warnings
from front.front import Front
from front.tables import file_size

if TYPE_CHECKING:
    import argparse


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_choice(parser)
    add_blend(parser)
    parser.add_argument(
        "--format",
        choices=("diffusers", "kohya"),
        default="diffusers",
        help="diffusers, or kohya's layout for ComfyUI, A1111 and Forge",
    )
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32")
    add_out(parser, is_required=True)


def run(args: argparse.Namespace) -> None:
    """Write one adapter in the layout another program reads, alpha included, with a model card."""
    from front.export import write_folder

    front = Front.load(args.run)
    member = choose_or_blend(front, args)
    check_out(args)
    for line in loss_warnings(front, member):
        say(line)
    with output_folder(args) as folder:
        file = write_folder(folder, front, member, file_format=args.format, precision=args.dtype)
    size = file_size(file.stat().st_size)
    say(f"wrote {file}, {size}: {member.id} as {args.format}, {args.dtype}")


COMMAND = Command(
    summary="an adapter for diffusers, ComfyUI, A1111 or Forge",
    add_arguments=_add_arguments,
    run=run,
)
