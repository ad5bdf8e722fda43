"""A tiny run of the real program, in processes of its own."""

from __future__ import annotations

import pytest
from safetensors.torch import load

from tests.conftest import small_world, timeless_metrics
from tests.faults.program import Program


@pytest.fixture(scope="session", name="program")
def _program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")
    program = Program(
        folder,
        [
            *small_world(folder),
            "--config.evolution.evolutionary_generations=3",
            "--config.evaluation.selection_images=8",
            "--config.evaluation.report_images=8",
        ],
    )
    yield program
    program.close()


@pytest.fixture(scope="session", name="whole")
def _whole(program):
    """The run directory of an uninterrupted run of four generations."""
    code, output = program.run("run_name=whole")
    assert code == 0, output
    return program.folder / "logs" / "whole"


_OF_THIS_RUN = {".lock", "config.json", "report.html"}  # they hold its name or process


def content(run):
    """What must not depend on how often a run was interrupted, path -> value."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if not path.is_file() or path.suffix == ".png" or name in _OF_THIS_RUN:
            continue
        found[name] = path.read_bytes()
        if name.startswith("adapters/"):  # whose metadata is in no fixed order
            tensors = load(found[name])
            found[name] = {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}
    found["metrics.jsonl"] = timeless_metrics(found["metrics.jsonl"].decode())
    for name in [name for name in found if name.startswith("checkpoints/")]:
        del found[name]  # they hold the times' lengths and the settings, resume_from among them
    return found
