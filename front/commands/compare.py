"""Compare several runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from config.settings.files import path
from front.commands.arguments import numbers, plot_file
from front.commands.command import Command, say
from front.errors import ChoiceError, FrontError
from front.front import Front
from front.tables import terminal_table

if TYPE_CHECKING:
    import argparse


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=path, nargs="+", help="two or more run directories")
    parser.add_argument("--reference", type=numbers, help="raw returns that count as z = 0")
    parser.add_argument("--ideal", type=numbers, help="raw returns that count as z = 1")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--out",
        type=plot_file,
        default=Path("comparison.png"),
        help="the plot, .png, .pdf or .svg; default comparison.png",
    )


def run(args: argparse.Namespace) -> None:
    """Compare the fronts of several runs: a table, and a plot of fronts and hypervolume curves.

    All hypervolumes share one reference and one ideal point: --reference and --ideal, or else the
    points of the runs, which must agree.
    """
    from front import compare as comparing

    if len(args.runs) < 2:
        raise ChoiceError("give two or more runs to compare")
    fronts = [Front.load(run) for run in args.runs]
    objectives = comparing.common_objectives(fronts, args.reference, args.ideal)
    contenders = comparing.compare(fronts, objectives)
    if args.json:
        say(json.dumps([contender.to_json() for contender in contenders], indent=1))
        return
    header = ["run", "policies", "on joint front", "hypervolume", "sparsity", "expected utility"]
    header += [*(f"best {name}" for name in fronts[0].names), "images", "UNet rows"]
    rows = [
        [
            each.label,
            str(len(each.front.policies)),
            str(each.num_joint),
            f"{each.hypervolume:.4f}",
            f"{each.sparsity:.4f}",
            f"{each.expected_utility:.4f}",
            *(
                f"{max(p.report_returns[i] for p in each.front.policies):.4g}"
                for i in range(len(objectives))
            ),
            str(each.front.costs.train),
            str(each.front.costs.unet_rows),
        ]
        for each in contenders
    ]
    say(terminal_table(header, rows))
    points = [f"{o.name}: 0 is {o.reference:.4g}, 1 is {o.ideal:.4g} {o.unit}" for o in objectives]
    say(f"\nreport set, z-units: {'; '.join(points)}")
    for line in comparing.differing_settings(fronts):
        say(f"differs  {line}")
    try:
        comparing.plot_comparison(args.out, contenders)
    except OSError as error:
        raise FrontError(f"--out={args.out} cannot be written to: {error}") from error
    say(f"wrote {args.out}")


COMMAND = Command(
    summary="several runs in one plot and table", add_arguments=_add_arguments, run=run
)
