"""A tiny run of the real program, in processes of its own."""

from __future__ import annotations

import pytest

from tests.support.program import Program
from tests.support.worlds import small_world


@pytest.fixture(scope="session", name="program")
def _program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")
    return Program(
        folder,
        [
            *small_world(folder),
            "--config.evolution.evolutionary_generations=3",
            "--config.evaluation.blends_fraction=0.1",
        ],
    )


@pytest.fixture(scope="session", name="whole")
def _whole(program):
    """The run directory of an uninterrupted run of four generations."""
    code, output = program.run("run_name=whole")
    assert code == 0, output
    return program.folder / "logs" / "whole"
