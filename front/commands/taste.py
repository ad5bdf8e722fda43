"""Ask a person which pictures they like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from config.settings.declared import expand_home
from config.settings.files import path
from front.commands.arguments import add_clip, guidance, port, positive, seed
from front.commands.arguments import add_model as add_model_of_run
from front.commands.command import Command, say

if TYPE_CHECKING:
    import argparse


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=expand_home,
        metavar="RUN_OR_MODEL",
        help="run directory, whose policies are shown, too; or a model: folder, file or hub id",
    )
    parser.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        required=True,
        help="where the answers go; continued if there are some",
    )
    parser.add_argument(
        "--prompts",
        type=expand_home,
        default="",
        help="prompt set or file; default: what the run was trained on, or animals",
    )
    add_clip(parser)
    parser.add_argument(
        "--steps", type=positive, help="denoising steps; default: the run's, or 30 of a model"
    )
    parser.add_argument(
        "--guidance", type=guidance, help="guidance scale; default: the run's, or 7.5 of a model"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of what is drawn by chance")
    add_model_of_run(parser)
    parser.add_argument("--port", type=port, default=0, help="default: a free one")
    parser.add_argument("--browse", action="store_true", help="open a browser")


def run(args: argparse.Namespace) -> None:
    """Ask which of two pictures you like better, in a page, until Ctrl+C.

    Answer by click or arrow key: left, right, or down for neither; backspace takes an answer back.
    Every answer is saved immediately. When the page says that the taste is better than chance,
    train towards it with --config.rewards.names=taste:DIR,clip_alignment (docs/taste.md).
    """
    from front.taste.open import ask
    from run.progress import route_logs

    route_logs()
    changes = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    ask(
        args.source,
        args.out,
        prompts=args.prompts,
        clip=args.clip,
        seed=args.seed,
        model=args.model,
        device=args.device,
        rows_per_pass=args.rows_per_pass,
        changes={name: value for name, value in changes.items() if value is not None},
        port=args.port,
        browse=args.browse,
        say=say,
    )


COMMAND = Command(
    summary="learn what you like, by asking you", add_arguments=_add_arguments, run=run
)
