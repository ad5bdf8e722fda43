"""Measure blends between the policies of a front."""

from __future__ import annotations

from typing import TYPE_CHECKING

from config.settings.errors import UserError
from front.commands.arguments import add_model, add_run, positive
from front.commands.command import Command, say
from front.front import Front
from front.tables import terminal_table, with_error

if TYPE_CHECKING:
    import argparse


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--points",
        type=positive,
        default=3,
        help="blends between each pair of neighbours; default 3",
    )
    parser.add_argument(
        "--predictions",
        action="store_true",
        help="measure every blend in predictions, too: the parts' predictions mixed in every step",
    )
    add_model(parser)


def run(args: argparse.Namespace) -> None:
    """Measure blends between all neighbours on the front, on the run's report set.

    Says where interpolation holds and which policies it connects (families). Adds the blends that
    nothing dominates to front.json, writes analysis.json and dense_front.png.
    """
    from front.analysis.measure import analyse
    from front.analysis.publish import check_publishable, publish_analysis
    from front.report import write_report
    from run.progress import route_logs

    route_logs()
    front = Front.load(args.run)
    check_publishable(front)
    analysis, evaluations = analyse(
        front,
        args.points,
        with_predictions=args.predictions,
        model=args.model,
        device=args.device,
        rows_per_pass=args.rows_per_pass,
    )
    publish_analysis(front, analysis, evaluations)
    rows = []
    for link in analysis.links:
        worst = min(link.blends, key=lambda each: each.height)
        verdict = "holds" if link.holds else "fails"
        height = with_error(worst.height, worst.height_std_error)
        names = f"{link.first.id} - {link.second.id}"
        useful = sum(each.is_useful for each in link.blends)
        counted = f"{useful} of {len(link.blends)}"
        rows.append([names, height, f"{-worst.depth:.3f}", verdict, counted])
        mixed = [each.in_predictions for each in link.blends if each.in_predictions]
        if mixed:
            lowest = min(mixed, key=lambda each: each.height)
            rows[-1].append(with_error(lowest.height, lowest.height_std_error))
    header = ["neighbours", "lowest blend", "corner", "interpolation", "non-dominated"]
    if args.predictions:
        header.append("lowest in predictions")
    say(terminal_table(header, rows))
    say("")
    say("lowest blend: height above the chord, z-units, ± 1 standard error; corner: worst of both")
    for index, family in enumerate(analysis.families(front), start=1):
        say(f"family {index}: {', '.join(family)}")
    say(
        f"hypervolume {analysis.hypervolume:.4f}, with {len(analysis.useful)} blends "
        f"{analysis.dense_hypervolume:.4f}; {analysis.num_images} images"
    )
    say(f"wrote {front.path / 'dense_front.png'}, analysis.json, and blends to front.json")
    try:
        say(f"wrote {write_report(front.path)}, with the blends")
    except UserError as error:
        say(f"report.html stays as it was: {error}")


COMMAND = Command(
    summary="measure blends along the whole front", add_arguments=_add_arguments, run=run
)
