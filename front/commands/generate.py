"""Draw pictures of a policy beside the base model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from config.settings.files import path
from front.commands.arguments import (
    add_blend,
    add_choice,
    add_model,
    choose_or_blend,
    guidance,
    positive,
    seed,
    text,
)
from front.commands.command import Command, say
from front.describe import member_text
from front.front import Front

if TYPE_CHECKING:
    import argparse


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_choice(parser)
    add_blend(parser)
    parser.add_argument(
        "--prompt", type=text, action="append", required=True, help="what to draw; may be repeated"
    )
    parser.add_argument("--num-images", type=positive, default=4, help="pictures of each prompt")
    parser.add_argument(
        "--seed", type=seed, default=0, help="of the first picture; then seed + 1, ..."
    )
    parser.add_argument("--steps", type=positive, help="denoising steps; default: the run's")
    parser.add_argument("--guidance", type=guidance, help="guidance scale; default: the run's")
    add_model(parser)
    parser.add_argument("--out", type=path, metavar="DIR", help="default: RUN/generated")


def run(args: argparse.Namespace) -> None:
    """Draw pictures of a policy or blend beside the base model's of the same seeds.

    Picture i of a prompt has the seed --seed + i. Without --steps and --guidance the run's own
    sampler is used. Writes every picture and one sheet of all.
    """
    front = Front.load(args.run)
    member = choose_or_blend(front, args)
    say(member_text(front, member))
    from front.pictures.generate import draw_beside_base
    from run.progress import route_logs

    route_logs()

    changes = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    out = args.out or front.path / "generated"
    sheet = draw_beside_base(
        front,
        member,
        args.prompt,
        [args.seed + i for i in range(args.num_images)],
        out,
        model=args.model,
        device=args.device,
        rows_per_pass=args.rows_per_pass,
        **{name: value for name, value in changes.items() if value is not None},
    )
    say(f"wrote {sheet}, and every picture beside it")


COMMAND = Command(summary="pictures beside the base model's", add_arguments=_add_arguments, run=run)
