"""Measure a front under other samplers, steps, guidance and strengths."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from config.settings.errors import UserError
from front.commands.arguments import add_model, add_run, at_least_two
from front.commands.command import Command, say
from front.errors import ChoiceError
from front.front import Front
from front.setups import SAMPLER_NAMES, transfer_table
from front.tables import markdown_table, terminal_table

if TYPE_CHECKING:
    import argparse

    from front.setups import Setup

_KINDS = {"sampler": str, "eta": float, "steps": int, "guidance": float, "strength": float}


def _setup(text: str) -> dict[str, Any]:
    """`sampler=euler_a,steps=20`; argparse turns a ValueError into its message."""
    pairs = dict(part.split("=") for part in text.split(","))
    if pairs.keys() - _KINDS:
        raise ValueError
    return {name: _KINDS[name](value) for name, value in pairs.items()}


_setup.__name__ = f"setup such as sampler=euler_a,steps=20; it takes {', '.join(_KINDS)}; value"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--setup",
        type=_setup,
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="measure this one instead of the usual ones; may be repeated. sampler: "
        f"{', '.join(SAMPLER_NAMES)}; eta (of ddim), steps, guidance, strength. The rest stays "
        "as the run had it",
    )
    parser.add_argument(
        "--images",
        type=at_least_two,
        default=0,
        help="pictures per policy and setup, the first of the report set; default: all",
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    add_model(parser)


def _checked(own: Setup, changes: dict[str, Any]) -> Setup:
    """The run's setup with changes.

    Raises:
        ChoiceError: naming all that is wrong.
    """
    sampler = changes.get("sampler", own.sampler)
    setup = replace(own, **{**({} if sampler == "ddim" else {"eta": 0.0}), **changes})
    rules = {
        f"sampler={sampler} is not one of {', '.join(SAMPLER_NAMES)}": sampler in SAMPLER_NAMES,
        f"eta={setup.eta:g} must be from 0 to 1": 0 <= setup.eta <= 1,
        f"eta={setup.eta:g} is for ddim only; leave it out": sampler == "ddim" or not setup.eta,
        f"steps={setup.steps} must be at least 1": setup.steps >= 1,
        f"guidance={setup.guidance:g} must be at least 1, which is none": 1
        <= setup.guidance
        < math.inf,
        f"strength={setup.strength:g} must be above 0": 0 < setup.strength < math.inf,
    }
    if problems := [problem for problem, holds in rules.items() if not holds]:
        raise ChoiceError(f"--setup: {'; '.join(problems)}")
    return setup


def run(args: argparse.Namespace) -> None:
    """Measure the front and the base model again as people draw, on the run's report set.

    Prints how much of each gain is left under other samplers, steps, guidance and LoRA strengths,
    and which policies surely keep less than half of it. Adds this to front.json and report.html;
    model cards written from now on have it, too.
    """
    from front.analysis.publish import check_publishable
    from front.analysis.transfer import measure_transfer, publish_transfer, setup_of
    from front.report import write_report
    from run.progress import route_logs

    route_logs()
    front = Front.load(args.run)
    setups = [_checked(setup_of(front), changes) for changes in args.setup]
    check_publishable(front)
    records = measure_transfer(
        front,
        setups,
        args.images,
        model=args.model,
        device=args.device,
        rows_per_pass=args.rows_per_pass,
    )
    publish_transfer(front, records)
    table = markdown_table if args.markdown else terminal_table
    say(table(*transfer_table(records, front.names, front.policies)))
    say("")
    for record in records:
        for swap in record.swaps:
            say(
                f"{record.setup.words(records[0].setup)}: {swap.is_better} has more "
                f"{swap.objective} than {swap.was_better}, which had more as trained"
            )
    say(
        f"as trained: {records[0].setup.words()}; {records[0].num_images} pictures per policy and "
        "setup, ± 1 standard error"
    )
    say(f"wrote {front.path / 'front.json'}, with every policy under every setup")
    try:
        say(f"wrote {write_report(front.path)}")
    except UserError as error:
        say(f"report.html stays as it was: {error}")


COMMAND = Command(
    summary="the front under other samplers, steps, guidance and strengths",
    add_arguments=_add_arguments,
    run=run,
)
