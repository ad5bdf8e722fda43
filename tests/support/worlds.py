"""Folders in which the real program runs on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.paths import SMOKE
from tests.support.pipelines import draw_with_diffusers, make_tiny_pipe, of_8_bits


def small_world(folder: Path, **unet_changes: Any) -> list[str]:
    """Make a tiny model and prompt files; returns the arguments that run the smoke recipe."""
    make_tiny_pipe(**unet_changes).save_pretrained(folder / "model")
    return world_around(folder)


def report_colorfulness(pipe: Any, guidance_scale: float = 1.0, pictures: int = 8) -> float:
    """Mean colourfulness of the report set of `world_around`, drawn by diffusers."""
    from ddpo.evaluation import evaluation_set
    from ddpo.rewards.colorfulness import colorfulness

    on = evaluation_set("report", ["e", "f"], pictures, run_seed=0)
    images = draw_with_diffusers(pipe, on.prompts, on.seeds, guidance_scale=guidance_scale)
    return colorfulness(of_8_bits(images), on.prompts).mean().item()


# Half as many pictures to judge by, and no blends at the end: a quarter of a smoke run's time.
SMALL = (
    "evaluation.blends_fraction=0",
    "evaluation.selection_images=8",
    "evaluation.report_images=8",
)


def world_around(folder: Path) -> list[str]:
    """Make prompt files beside a model; returns the arguments that run the smoke recipe."""
    (folder / "train.txt").write_text("a\nb\nc\nd\n")
    (folder / "report.txt").write_text("e\nf\n")
    return [
        f"--config={SMOKE}",
        f"--config.pretrained.model={folder / 'model'}",
        f"--config.prompts.train={folder / 'train.txt'}",
        f"--config.prompts.report={folder / 'report.txt'}",
        "--config.rewards.names=colorfulness,jpeg_compressibility",
        "--config.num_threads=1",
        "--config.train.learning_rate=0.1",
        *(f"--config.{change}" for change in SMALL),
        f"--config.logdir={folder / 'logs'}",
    ]


def run_program(words: list[str], *changes: str, with_plots: bool = False) -> None:
    """Run the program in this process.

    Args:
        words: of its command line.
        changes: settings, without `--config.`.
        with_plots: otherwise its plots, a fifth of its time, are blank.
    """
    import mo_train
    from run.command_line import read_settings

    with pytest.MonkeyPatch.context() as patch:
        if not with_plots:
            leave_plots_blank(patch)
        mo_train.main(read_settings([*words, *(f"--config.{change}" for change in changes)]))


def leave_plots_blank(patch: pytest.MonkeyPatch) -> None:
    """Let a run write pictures of one pixel in place of its plots."""
    plots = ("publish.plot_front", "publish.plot_hypervolume", "analysis.publish.plot_dense_front")
    for name in plots:
        patch.setattr(f"front.{name}", _blank)


def _blank(path: Path, *_: Any) -> None:
    Image.new("L", (1, 1)).save(path)


def timeless_metrics(text: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl without measured times."""
    timed = ("seconds", "overhead")
    return [
        {name: value for name, value in line.items() if not any(word in name for word in timed)}
        for line in map(json.loads, text.splitlines())
    ]
