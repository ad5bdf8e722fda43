"""Small checkpoints, and functions that forge them: changed content with the right digests."""

from __future__ import annotations

import hashlib
import json

import torch

from ddpo.calibration import Calibration
from ddpo.types import Policy, PromptStatistics
from run.checkpoint import Checkpoint
from run.records import Costs, CurvePoint
from run.state import RunState
from run.versions import Versions

VERSIONS = Versions(python="3", packages={"torch": "2"})


def policy(seed):
    generator = torch.Generator().manual_seed(seed)
    adapter, first, second = torch.randn(3, 20, generator=generator).unbind()
    statistics = PromptStatistics().add(["a", "b"], torch.rand(2, 2, generator=generator), 4)
    return Policy(
        adapter=adapter, exp_avg=first, exp_avg_sq=second.abs(), step=seed, statistics=statistics
    )


def state(generation):
    """The state of a run that samples ten images per generation."""
    points = (CurvePoint(10 * i, 0.1 * i) for i in range(generation + 1))
    return RunState(
        settings={"seed": 0},
        calibration=Calibration(scales=(1.0, 2.0), reference=(0.0, -1.0), ideal=(1.0, 3.0)),
        costs=Costs(train=10 * generation, selection=2, report=0, unet_rows=40 * generation),
        curve=tuple(points),
        warmup_archive=("base",),
        prompts={"train": "ab", "report": "cd"},
        metrics_bytes=100 * generation,
    )


def commit(store, generation, names):
    store.commit(
        Checkpoint(
            generation=generation,
            search={"n": generation},
            policies={name: policy(len(name) + generation) for name in names},
            state=state(generation),
            versions=VERSIONS,
        )
    )


def entry(data):
    """A manifest's entry for a file with these bytes."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def reseal(path, **changes):
    """Give a manifest other content with the right digest, as a forger would."""
    manifest = {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"} | changes
    content = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps({**manifest, "sha256": hashlib.sha256(content).hexdigest()}))


def assert_equal(first, second):
    for name in ("adapter", "exp_avg", "exp_avg_sq"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.step == second.step
    assert first.statistics == second.statistics
