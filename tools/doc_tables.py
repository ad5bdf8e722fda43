"""Tables of docs/ that are made from the code: `python -m tools.doc_tables`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from config.settings.loader import load_recipe
from ddpo.cost.footprint import measure_footprint, plan_of
from ddpo.cost.plan import CARDS, UTILISATION, Plan, expected_memory, hours, total_flops
from ddpo.prompts import MIN_TO_SPLIT, PROMPT_SETS, load_prompts, split_prompts
from ddpo.rewards import markdown_table
from run.command_line import read_settings
from run.dry_run import download_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.base import Settings

ROOT = Path(__file__).resolve().parents[1]
_END = "<!-- end of table -->"
_HARDWARE = {  # of config/aesthetic_compressibility.py
    "one card of 10 GB": (
        "sample.rows_per_pass=24",
        "train.rows_per_pass=24",
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
_SMALL_CARD = {  # recipe -> what makes it fit a card of 12 GB
    "sd15_evening": ("rewards.dtype=bfloat16", "rewards.batch_size=4", "sample.rows_per_pass=20"),
    "sd15_lcm": ("rewards.dtype=bfloat16",),
    "sd_turbo": ("rewards.dtype=bfloat16",),
    "sdxl_evening": (
        "pretrained.height=768",
        "pretrained.width=768",
        "rewards.names=clip_score,aesthetic_score",
        "rewards.dtype=bfloat16",
    ),
    "sdxl_lightning": (
        "pretrained.height=768",
        "pretrained.width=768",
        "rewards.dtype=bfloat16",
    ),
    "sdxl_turbo": ("rewards.dtype=bfloat16", "rewards.batch_size=2", "sample.rows_per_pass=10"),
}
_DDPO = (f"--config={ROOT / 'config' / 'ddpo.py'}",)
_CHEAPER = (  # of config/ddpo.py
    (),
    ("sample.num_steps=10",),
    ("train.timestep_fraction=0.5",),
    ("train.single_pass=True", "train.updates_per_epoch=1"),
)
# Stable Diffusion 1.5 with six agents, in float32; then what saves memory, each on top of the last.
_LARGE = (
    "pretrained.model=stable-diffusion-v1-5/stable-diffusion-v1-5",
    "evolution.num_agents=6",
    "sample.num_steps=50",
    "sample.guidance_scale=5",
    "sample.prompts_per_iteration=32",
    "sample.images_per_prompt=4",
    "sample.rows_per_pass=48",
    "train.rows_per_pass=24",
    "rewards.names=jpeg_compressibility,colorfulness",
)
_SAVING = (
    ("pretrained.dtype=bfloat16",),
    ("speed=fused",),
    ("sample.offload_rollouts=True",),
    ("train.gradient_checkpointing=True",),
    ("sample.rows_per_pass=12", "train.rows_per_pass=12"),
)
_SHOWN_CARDS = ("RTX 4090", "A100", "H100")
_HOURS = [f"{card} hours" for card in _SHOWN_CARDS]


def recipe_table() -> str:
    """One row per recipe: what it trades off, how much it draws, what it needs."""
    counts = ("Agents", "Images, training", "UNet rows", "PFLOP", "Peak GB", "Download GB")
    head = ("Recipe", "Model", "Objectives", *counts, *_HOURS)
    paths = sorted((ROOT / "config").glob("*.py"))
    recipes = [path for path in paths if "def get_config" in path.read_text(encoding="utf-8")]
    return _markdown(head, [_recipe_row(path) for path in recipes])


def _large(count: int) -> str:
    """A count with two digits or more before its unit: 12 k, 46 M."""
    return f"{count / 1e6:,.0f} M" if count >= 10e6 else f"{count / 1e3:,.0f} k"


def _recipe_row(path: Path) -> list[str]:
    settings, plan = _planned((), [f"--config={path}"])
    footprint = measure_footprint(settings)
    flops = total_flops(plan, footprint)
    spent = [hours(flops, CARDS[card], UTILISATION) for card in _SHOWN_CARDS]
    return [
        f"`config/{path.name}`",
        f"`{load_recipe(path).pretrained.model}`",
        ", ".join(f"`{name}`" for name in settings.rewards.names),
        str(settings.evolution.num_agents),
        f"{plan.train_images:,}",
        _large(plan.sample_rows + plan.train_rows),
        f"{flops / 1e15:,.0f}" if flops >= 1e15 else "-",
        f"{expected_memory(settings, plan, footprint).peak / 1e9:.1f}",
        f"{download_bytes(settings, footprint) / 1e9:.1f}",
        *(_hours(each) for each in spent),
    ]


def _hours(spent: float) -> str:
    if spent < 0.1:
        return "-"
    return f"{spent:.0f}" if spent >= 10 else f"{spent:.1f}"


def cheaper_table() -> str:
    """One row per saving of UNet rows, counted for the training images of config/ddpo.py."""
    rows = []
    for overrides in _CHEAPER:
        _, plan = _planned(overrides, _DDPO)
        drawn = plan.train_images * plan.sample_rows_per_image
        rows.append([_shown(overrides), f"{drawn:,}", f"{plan.train_rows:,}"])
    return _markdown(("Overrides", "Rows to sample", "Rows with gradient"), rows)


def memory_table() -> str:
    """One row per saving of memory, each on top of the last: expected peaks of SD 1.5."""
    parts = ("rollout", "sampling", "decoding", "training")
    head = ("Changed", "Expected peak [GB]", "Of which: rollout", *parts[1:])
    rows = []
    for number in range(len(_SAVING) + 1):
        given = [each for overrides in _SAVING[:number] for each in overrides]
        settings, plan = _planned([*_LARGE, *given], _DDPO)
        footprint = measure_footprint(settings)
        memory = expected_memory(settings, plan, footprint)
        sizes = [memory.peak, *(getattr(memory, part) for part in parts)]
        changed = _shown(_SAVING[number - 1]) if number else "the command above"
        flops = f"{footprint.train_flops / 1e12:.2f} T"
        rows.append([changed, *(f"{size / 1e9:.1f}" for size in sizes), flops])
    return _markdown((*head, "FLOPs of a row with gradient"), rows)


def _planned(overrides: Sequence[str], recipe: Sequence[str] = ()) -> tuple[Settings, Plan]:
    """The settings with these overrides, and what their run would do."""
    settings = read_settings([*recipe, *(f"--config.{override}" for override in overrides)])
    return settings, plan_of(settings, len(split_prompts(settings.prompts).train))


def _shown(overrides: Sequence[str]) -> str:
    return ", ".join(f"`{override}`" for override in overrides) or "none"


def hardware_table() -> str:
    """One row per card: what to override in the first recipe, and what it then needs."""
    head = ("Hardware", "Overrides", "Images per iteration", "Peak GB")
    rows = []
    recipe = ROOT / "config" / "aesthetic_compressibility.py"
    for card, overrides in _HARDWARE.items():
        settings, plan = _planned(overrides, [f"--config={recipe}"])
        peak = expected_memory(settings, plan, measure_footprint(settings)).peak
        images = f"{plan.images_per_iteration:,}"
        rows.append([card, _shown(overrides), images, f"{peak / 1e9:.1f}"])
    return _markdown(head, rows)


def small_card_table() -> str:
    """One row per recipe of an evening: what to override on a card of 12 GB, and what it needs."""
    rows = []
    for name, overrides in _SMALL_CARD.items():
        settings, plan = _planned(overrides, [f"--config={ROOT / 'config' / name}.py"])
        footprint = measure_footprint(settings)
        spent = hours(total_flops(plan, footprint), CARDS["RTX 4090"], UTILISATION)
        peak = expected_memory(settings, plan, footprint).peak
        rows.append([f"`{name}`", _shown(overrides), f"{peak / 1e9:.1f}", _hours(spent)])
    return _markdown(("Recipe", "Overrides", "Peak GB", "RTX 4090 hours"), rows)


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
    """The text of a page, with every table between its marks made again."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, make in PAGES[page].items():
        begin = f"<!-- {name}: python -m tools.doc_tables -->"
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n{make()}\n{_END}{rest.split(_END, 1)[1]}"
    return text


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/rewards.md": {"rewards": markdown_table},
    "docs/recipes.md": {
        "recipes": recipe_table,
        "small cards": small_card_table,
        "hardware": hardware_table,
    },
    "docs/prompts.md": {"prompt sets": prompt_table},
    "docs/cheaper_passes.md": {"cheaper passes": cheaper_table},
    "docs/scaling.md": {"memory": memory_table},
}


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(with_tables(page), encoding="utf-8")
        sys.stdout.write(f"{page} is up to date\n")
