"""Costs of every recipe on common cards, computed without a run: UNet rows, FLOPs, hours.

    python -m benchmarks.costs             # the recipes of config/
    python -m benchmarks.costs --quick     # the default recipe alone
    python -m benchmarks.costs --utilisation 0.5

Numbers come from the cost model of `mo_train.py --dry_run`, which shows one recipe in detail. Hours
are for one card that reaches the share `--utilisation` of its bfloat16 peak; `benchmarks.gpu`
measures that share.

The last line is JSON: hours by recipe and card.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import common
from benchmarks.worker import ROOT
from config.settings.errors import ConfigError, UserError
from ddpo.cost.footprint import measure_footprint, plan_of
from ddpo.cost.plan import CARDS, UTILISATION, hours, total_flops
from ddpo.prompts import split_prompts
from run.command_line import read_settings


def recipes() -> list[Path]:
    """The recipes in `config/`: the files that define `get_config`."""
    files = sorted((ROOT / "config").glob("*.py"))
    return [file for file in files if "def get_config" in file.read_text(encoding="utf-8")]


def main() -> None:
    """Print the table and the headline."""
    parser = common.parser(__doc__, rounds=1)
    parser.add_argument(
        "--utilisation", type=float, default=UTILISATION, help="share of a card's peak"
    )
    arguments = parser.parse_args()
    chosen = [ROOT / "config" / "base.py"] if arguments.quick else recipes()
    common.say(f"One card at {arguments.utilisation:.0%} of its bfloat16 peak.\n")
    rows, headline = [], {}
    for recipe in chosen:
        name = recipe.stem
        try:
            settings = read_settings(["--config", str(recipe)])
            footprint = measure_footprint(settings)
        except (ConfigError, UserError) as error:
            common.say(f"{name}: left out, {error}")
            continue
        plan = plan_of(settings, len(split_prompts(settings.prompts).train))
        flops = total_flops(plan, footprint)
        spent = {card: hours(flops, peak, arguments.utilisation) for card, peak in CARDS.items()}
        headline[name] = spent
        rows.append(
            [
                name,
                plan.num_agents,
                plan.images,
                plan.sample_rows,
                plan.train_rows,
                flops / 1e15,
                *spent.values(),
            ]
        )
    common.print_table(
        [
            "recipe",
            "agents",
            "images",
            "UNet rows without gradient",
            "with gradient",
            "PFLOP",
            *(f"{card} [h]" for card in CARDS),
        ],
        rows,
    )
    common.print_headline(headline)


if __name__ == "__main__":
    main()
