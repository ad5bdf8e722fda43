"""Tables in docs/ that are made from the code: `python -m tools.doc_tables` mends them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from config.loader import load_recipe
from ddpo.costs import CARDS, Plan, expected_memory, hours, total_flops
from ddpo.footprint import measure_footprint
from ddpo.prompts import MIN_TO_SPLIT, PROMPT_SETS, load_prompts, split_prompts
from front.dry_run import UTILISATION
from mo_train import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parents[1]
_END = "<!-- end of table -->"
_HARDWARE = {  # of config/aesthetic_compressibility.py
    "one card of 10 GB": (
        "sample.rows_per_pass=24",
        "train.rows_per_pass=12",
        "pretrained.offload_text_encoders=True",
        "rewards.device=cpu",
    ),
    "one card of 24 GB": (),
    "one card of 80 GB": (
        "train.gradient_checkpointing=False",
        "train.rows_per_pass=48",
        "sample.rows_per_pass=192",
        "sample.offload_rollouts=False",
    ),
}
_SHOWN_CARDS = ("RTX 4090", "A100", "H100")


def recipe_table() -> str:
    """One row per recipe: what it trades off, how much it draws, what it needs."""
    cards = [f"{card} hours" for card in _SHOWN_CARDS]
    head = ("Recipe", "Model", "Objectives", "Agents", "Images, training", "Peak GB", *cards)
    paths = sorted((ROOT / "config").glob("*.py"))
    recipes = [path for path in paths if "def get_config" in path.read_text(encoding="utf-8")]
    return _markdown(head, [_recipe_row(path) for path in recipes])


def _recipe_row(path: Path) -> list[str]:
    settings = read_settings([f"--config={path}"])
    plan = Plan.of(settings, len(split_prompts(settings.prompts).train))
    footprint = measure_footprint(settings)
    flops = total_flops(plan, footprint)
    spent = [hours(flops, CARDS[card], UTILISATION) for card in _SHOWN_CARDS]
    return [
        f"`config/{path.name}`",
        f"`{load_recipe(path).pretrained.model}`",
        ", ".join(f"`{name}`" for name in settings.rewards.names),
        str(settings.evolution.num_agents),
        f"{plan.train_images:,}",
        f"{expected_memory(settings, plan, footprint).peak / 1e9:.1f}",
        *(f"{each:.0f}" if each >= 1 else "-" for each in spent),
    ]


def hardware_table() -> str:
    """One row per card: what to override in the first recipe, and what it then needs."""
    head = ("Hardware", "Overrides", "Images an iteration", "Peak GB")
    rows = []
    for card, overrides in _HARDWARE.items():
        words = [f"--config.{override}" for override in overrides]
        recipe = ROOT / "config" / "aesthetic_compressibility.py"
        settings = read_settings([f"--config={recipe}", *words])
        plan = Plan.of(settings, len(split_prompts(settings.prompts).train))
        peak = expected_memory(settings, plan, measure_footprint(settings)).peak
        shown = ", ".join(f"`{override}`" for override in overrides) or "none"
        rows.append([card, shown, f"{plan.images_per_iteration:,}", f"{peak / 1e9:.1f}"])
    return _markdown(head, rows)


def prompt_table() -> str:
    """One row per prompt set: its size, and how roles that share it divide it."""
    head = ("Name", "Prompts", "Content", "If shared: training, selection, report", "For example")
    return _markdown(head, [_prompt_row(name) for name in PROMPT_SETS])


def _prompt_row(name: str) -> list[str]:
    prompts = load_prompts(name)
    held_out = min(128, len(prompts) // 8)
    split = f"{len(prompts) - 2 * held_out}, {held_out}, {held_out}"
    return [
        f"`{name}`",
        str(len(prompts)),
        PROMPT_SETS[name].content,
        split if len(prompts) >= MIN_TO_SPLIT else "all, all, all (too few to split)",
        f'"{prompts[0]}", "{prompts[-1]}"',
    ]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_tables(page: str) -> str:
    """The text of a page, every table between its marks made anew."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, make in PAGES[page].items():
        begin = f"<!-- {name}: python -m tools.doc_tables -->"
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n{make()}\n{_END}{rest.split(_END, 1)[1]}"
    return text


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/recipes.md": {"recipes": recipe_table, "hardware": hardware_table},
    "docs/prompts.md": {"prompt sets": prompt_table},
}


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(with_tables(page), encoding="utf-8")
        sys.stdout.write(f"{page} is up to date\n")
