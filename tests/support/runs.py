"""One small run of the real program, shared by all tests that use a finished run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.paths import SMOKE
from tests.support.pipelines import make_tiny_pipe
from tests.support.worlds import SMALL, run_program

if TYPE_CHECKING:
    from collections.abc import Callable

# Enough pictures to compare a blend with its parts.
FINISHED = ("evaluation.selection_images=16", "evaluation.report_images=16")


@pytest.fixture(scope="session", name="make_run")
def _make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs the real program on a tiny random model: make_run("name", "train.learning_rate=1")."""
    folder = tmp_path_factory.mktemp("runs")
    make_tiny_pipe().save_pretrained(folder / "model")
    (folder / "train.txt").write_text("a\nb\nc\nd\n")
    (folder / "report.txt").write_text("e\nf\n")

    def run(name: str, *overrides: str) -> Path:
        settings = [
            f"pretrained.model={folder / 'model'}",
            f"prompts.train={folder / 'train.txt'}",
            f"prompts.report={folder / 'report.txt'}",
            "rewards.names=colorfulness,jpeg_compressibility",
            "adapter.alpha=6.0",
            "train.learning_rate=0.3",
            "evolution.num_agents=3",
            "evolution.evolutionary_generations=2",
            "num_threads=1",
            *SMALL,
            f"logdir={folder / 'logs'}",
            f"run_name={name}",
            *overrides,
        ]
        run_program([f"--config={SMOKE}"], *settings)
        return folder / "logs" / name

    return run


@pytest.fixture(scope="session", name="finished_run")
def _finished_run(make_run: Callable[..., Path]) -> Path:
    """A finished run of three agents and three generations; tests must not change it."""
    return make_run("finished", *FINISHED)


@pytest.fixture(name="run_copy")
def _run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
