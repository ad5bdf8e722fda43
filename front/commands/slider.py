"""Write a line of the front as one LoRA whose strength is a slider."""

from __future__ import annotations

from typing import TYPE_CHECKING

from front.commands.arguments import add_model, add_out, add_run
from front.commands.command import Command, say
from front.commands.output import check_out, output_folder
from front.errors import ChoiceError, FrontError
from front.front import Front
from front.member import FrontPolicy
from front.tables import terminal_table

if TYPE_CHECKING:
    import argparse


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    ends = "default: the front's ends in its first objective"
    parser.add_argument("--from", dest="first", metavar="ID", help=f"policy at strength 0; {ends}")
    parser.add_argument("--to", dest="second", metavar="ID", help=f"policy at strength 1; {ends}")
    parser.add_argument(
        "--format",
        choices=("diffusers", "kohya"),
        default="kohya",
        help="kohya's layout for ComfyUI, A1111 and Forge (default), or diffusers",
    )
    add_out(parser, is_required=True)
    add_model(parser)


def run(args: argparse.Namespace) -> None:
    """Write two LoRAs: a policy, and the direction from it to another, for slider nodes.

    With the first at strength 1, the strength of the second, from 0 to 1, moves along the line
    between the two policies. Five places of it are measured on the run's report set. If they lie
    too far below the front, nothing is written.
    """
    from front.analysis.slider import measure_slider, write_slider
    from run.progress import route_logs

    route_logs()
    front = Front.load(args.run)
    ends = [args.first or front.policies[0].id, args.second or front.policies[-1].id]
    first, second = (front.policy(name) for name in ends)
    if not (isinstance(first, FrontPolicy) and isinstance(second, FrontPolicy)):
        raise ChoiceError("--from and --to name policies; a blend has no adapter of its own")
    if first.id == second.id:
        raise ChoiceError(f"a slider needs two policies; both ends are {first.id}")
    check_out(args)
    slider = measure_slider(
        front,
        first,
        second,
        model=args.model,
        device=args.device,
        rows_per_pass=args.rows_per_pass,
    )
    say(terminal_table(*slider.table(front)))
    worst = slider.worst
    if not slider.is_near:
        raise FrontError(
            f"the line from {first.id} to {second.id} leaves the front: at strength "
            f"{worst.strength:g} it lies {worst.gap:.3f} below it (z-units), and "
            f"{slider.allowed:.3f} are allowed; choose policies nearer to each other with --from "
            "and --to (`analyse` says which ones interpolation connects)"
        )
    with output_folder(args) as folder:
        files = write_slider(folder, front, slider, is_kohya=args.format == "kohya")
    say(f"wrote {files[0]} (strength 1) and {files[1]} (the slider, strength 0 to 1)")
    say(f"at most {worst.gap:.3f} below the front (z-units), at strength {worst.strength:g}")


COMMAND = Command(
    summary="a line of the front as a LoRA whose strength is a slider",
    add_arguments=_add_arguments,
    run=run,
)
