"""Serve a front with live pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from config.settings.files import path
from front.commands.arguments import add_clip, add_model, add_run, port
from front.commands.command import Command

if TYPE_CHECKING:
    import argparse


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_model(parser)
    parser.add_argument(
        "--taste",
        type=path,
        metavar="DIR",
        help="where the answers of the tab for your taste go; continued if there are some; "
        "default: the folder taste of the run",
    )
    add_clip(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: this machine alone"
    )
    parser.add_argument("--port", type=port, help="default: the first free one from 7860")
    parser.add_argument("--browse", action="store_true", help="open a browser")


def run(args: argparse.Namespace) -> None:
    """Serve a page with sliders, a prompt and live pictures beside the base model's.

    A second tab asks which of two pictures you like better, as `taste` does (docs/taste.md). Needs
    gradio: pip install -r requires-serve.txt. Whoever reaches --host may draw and answer; requests
    wait in a queue and are drawn one at a time.
    """
    from front.serve import serve as run_server
    from run.progress import route_logs

    route_logs()
    run_server(
        args.run,
        args.host,
        args.port,
        model=args.model,
        device=args.device,
        rows_per_pass=args.rows_per_pass,
        taste=args.taste,
        clip=args.clip,
        browse=args.browse,
    )


COMMAND = Command(
    summary="the same with live pictures, in a browser", add_arguments=_add_arguments, run=run
)
