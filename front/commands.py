"""The commands of `mo_front.py`: each takes parsed arguments and prints what it did.

A command is a function, its arguments, and one line in `COMMANDS`. What is slow to import (torch,
diffusers, matplotlib) is imported by the command that needs it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from config.settings.errors import UserError
from front.arguments import (
    add_blend,
    add_choice,
    add_model,
    add_out,
    add_run,
    choose,
    choose_or_blend,
    guidance,
    numbers,
    plot_file,
    port,
    positive,
    seed,
)
from front.describe import front_text, member_text, summary
from front.errors import ChoiceError, FrontError
from front.front import Front
from front.tables import file_size, terminal_table, with_error

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

# ruff: noqa: PLC0415 - see the docstring


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of `mo_front.py`.

    Attributes:
        summary: a line for `--help`; a command explains itself in its function's docstring.
        configure: adds the command's arguments to its parser.
        run: does it.
    """

    summary: str
    configure: Callable[[argparse.ArgumentParser], object]
    run: Callable[[argparse.Namespace], None]


def say(line: str) -> None:
    """Print a line of the answer."""
    sys.stdout.write(line + "\n")


def empty_folder(path: Path) -> Path:
    """A folder to write to, made if absent.

    Raises:
        FrontError: if something is in it, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise FrontError(f"{path} is not empty; give a new folder")
    except OSError as error:
        raise FrontError(f"{path} cannot be written to: {error}") from error
    return path


# --- show --------------------------------------------------------------------------------------


def _configure_show(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def show(args: argparse.Namespace) -> None:
    """Print the front: every policy's weights, returns and size, and the quality of the whole."""
    front = Front.load(args.run)
    say(json.dumps(summary(front), indent=1) if args.json else front_text(front))


# --- pick --------------------------------------------------------------------------------------


def _configure_pick(parser: argparse.ArgumentParser) -> None:
    add_choice(parser)
    add_out(parser)


def pick(args: argparse.Namespace) -> None:
    """Print the policy that is best under a preference, in z-units on the report set."""
    front = Front.load(args.run)
    member = choose(front, args)
    say(member_text(front, member))
    if args.out is not None:
        from front.export import write_folder

        write_folder(empty_folder(args.out), front, member)
        say(f"wrote {args.out}: pipe.load_lora_weights({str(args.out)!r})")


# --- blend -------------------------------------------------------------------------------------


def _configure_blend(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--weights", type=numbers, required=True, help="preference, sum 1: 0.3,0.7")
    parser.add_argument(
        "--rank", type=positive, help="reduce to this rank by SVD; the relative error is printed"
    )
    add_out(parser)


def blend(args: argparse.Namespace) -> None:
    """Blend the neighbours on the front around a preference: their weight updates, added exactly.

    The blend's rank is the sum of its parts' ranks, unless --rank reduces it.
    """
    from ddpo.agents.adapter import Adapter

    front = Front.load(args.run)
    member = front.blend(args.weights)
    adapter, error = Adapter.of(member), 0.0
    if args.rank is not None:
        adapter, error = adapter.reduced(args.rank)
    if error:  # what was measured is not what is written
        member = dataclasses.replace(member, report_returns=None, report_std_error=None)
    say(member_text(front, member))
    reduced = f", reduced with a relative error of {error:.2g}" if error else ", exact"
    say(f"  rank {adapter.rank}{reduced}")
    if args.out is not None:
        from front.export import write_folder

        write_folder(empty_folder(args.out), front, member, adapter, error=error)
        say(f"wrote {args.out}: pipe.load_lora_weights({str(args.out)!r})")


# --- export ------------------------------------------------------------------------------------


def _configure_export(parser: argparse.ArgumentParser) -> None:
    add_choice(parser)
    add_blend(parser)
    parser.add_argument(
        "--format",
        choices=("diffusers", "kohya"),
        default="diffusers",
        help="diffusers, or kohya's layout for ComfyUI, A1111 and Forge",
    )
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="a new folder")


def export(args: argparse.Namespace) -> None:
    """Write one adapter in the layout another program reads, alpha included, with a model card."""
    from front.export import write_folder

    front = Front.load(args.run)
    member = choose_or_blend(front, args)
    file = write_folder(
        empty_folder(args.out), front, member, file_format=args.format, precision=args.dtype
    )
    size = file_size(file.stat().st_size)
    say(f"wrote {file}, {size}: {member.id} as {args.format}, {args.dtype}")


# --- generate ----------------------------------------------------------------------------------


def _configure_generate(parser: argparse.ArgumentParser) -> None:
    add_choice(parser)
    add_blend(parser)
    parser.add_argument(
        "--prompt", action="append", required=True, help="what to draw; may be repeated"
    )
    parser.add_argument("--num-images", type=positive, default=4, help="pictures of each prompt")
    parser.add_argument(
        "--seed", type=seed, default=0, help="of the first picture; then seed + 1, ..."
    )
    parser.add_argument("--steps", type=positive, help="denoising steps; default: the run's")
    parser.add_argument("--guidance", type=guidance, help="guidance scale; default: the run's")
    add_model(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/generated")


def generate(args: argparse.Namespace) -> None:
    """Draw pictures of a policy or blend beside the base model's of the same seeds.

    Picture i of a prompt has the seed --seed + i. Without --steps and --guidance the sampler is
    that of the run. Writes every picture and one sheet of all.
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


# --- report ------------------------------------------------------------------------------------


def report(args: argparse.Namespace) -> None:
    """Write `report.html` into the run directory: one page, readable from disk.

    It can be written while the run goes on; then it shows what the selection set says so far.
    """
    from front.report import write_report

    say(f"wrote {write_report(args.run)}")


# --- serve -------------------------------------------------------------------------------------


def _configure_serve(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_model(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: this machine alone"
    )
    parser.add_argument("--port", type=port, help="default: the first free one from 7860")
    parser.add_argument("--browse", action="store_true", help="open a browser")


def serve(args: argparse.Namespace) -> None:
    """Serve a page with sliders, a prompt and live pictures beside the base model's.

    Needs gradio: pip install -r requires-serve.txt. Whoever reaches --host may draw; requests wait
    in a queue and are drawn one at a time.
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
        browse=args.browse,
    )


# --- analyse -----------------------------------------------------------------------------------


def _configure_analyse(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--points",
        type=positive,
        default=3,
        help="blends between each pair of neighbours; default 3",
    )
    add_model(parser)


def analyse(args: argparse.Namespace) -> None:
    """Measure blends between all neighbours on the front, on the run's report set.

    Says where interpolation holds and which policies it connects (families). Adds the blends that
    nothing dominates to front.json, writes analysis.json and dense_front.png.
    """
    from front.analysis.measure import analyse as measure
    from front.analysis.publish import publish_analysis
    from front.report import write_report
    from run.progress import route_logs

    route_logs()
    front = Front.load(args.run)
    analysis, evaluations = measure(
        front,
        args.points,
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
        share = f"{useful} of {len(link.blends)}"
        rows.append([names, height, f"{-worst.depth:.3f}", verdict, share])
    header = ["neighbours", "lowest blend", "corner", "interpolation", "non-dominated"]
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


# --- push --------------------------------------------------------------------------------------


def _configure_push(parser: argparse.ArgumentParser) -> None:
    add_choice(parser)
    add_blend(parser)
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="made if absent")
    parser.add_argument("--private", action="store_true", help="if the repository is made now")
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be uploaded; nothing is sent"
    )


def push(args: argparse.Namespace) -> None:
    """Upload the whole front as one repository, or the one adapter that is chosen.

    Needs a token that may write: `hf auth login`, or HF_TOKEN.
    """
    from tempfile import TemporaryDirectory

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


# --- compare -----------------------------------------------------------------------------------


def _configure_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", help="two or more run directories")
    parser.add_argument("--reference", type=numbers, help="raw returns that count as z = 0")
    parser.add_argument("--ideal", type=numbers, help="raw returns that count as z = 1")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--out",
        type=plot_file,
        default=Path("comparison.png"),
        help="the plot, .png, .pdf or .svg; default comparison.png",
    )


def compare(args: argparse.Namespace) -> None:
    """Compare the fronts of several runs: a table, and a plot of fronts and hypervolume curves.

    All hypervolumes share one reference and one ideal point: those of the runs, which must agree,
    or --reference and --ideal.
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


COMMANDS: dict[str, Command] = {
    "show": Command(summary="the front as a table", configure=_configure_show, run=show),
    "pick": Command(
        summary="the best policy under a preference", configure=_configure_pick, run=pick
    ),
    "blend": Command(
        summary="an exact blend of neighbours on the front", configure=_configure_blend, run=blend
    ),
    "analyse": Command(
        summary="measure blends along the whole front", configure=_configure_analyse, run=analyse
    ),
    "export": Command(
        summary="an adapter for diffusers, ComfyUI, A1111 or Forge",
        configure=_configure_export,
        run=export,
    ),
    "generate": Command(
        summary="pictures beside the base model's", configure=_configure_generate, run=generate
    ),
    "report": Command(summary="a page to look at and choose from", configure=add_run, run=report),
    "serve": Command(
        summary="the same with live pictures, in a browser", configure=_configure_serve, run=serve
    ),
    "push": Command(summary="upload to a hub", configure=_configure_push, run=push),
    "compare": Command(
        summary="several runs in one plot and table", configure=_configure_compare, run=compare
    ),
}
