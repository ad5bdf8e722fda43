"""On a GPU, where there is one: the CPU's numbers, no waiting in the loops, whole runs."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from contextlib import contextmanager

import pytest
import torch

from ddpo.speed.fused import FusedGroupNorm
from ddpo.types import Rollout
from tests.support.paths import ROOT
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import make_rig
from tests.support.worlds import small_world

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(autouse=True)
def _exact():
    """float32 is float32, not tf32, which is what the default settings say."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in flags]
    for each in flags:
        each.allow_tf32 = False
    yield
    for each, value in zip(flags, before, strict=True):
        each.allow_tf32 = value


def trained(rig, slots=2):
    """Rollout, diagnostics and adapters after an update of perturbed agents."""
    rig.perturb()
    batch, wanted = rig.batch(slots, 4), rig.updater.wanted_gradients(4)
    rollout = Rollout.join(batch, list(rig.sampler.chunks(rig.agents, batch, wanted=wanted)))
    advantages = torch.linspace(-1, 1, 4).expand(slots, -1)
    stats = rig.updater.update(rig.agents, rollout, advantages, list(range(slots)))
    return rollout, stats, torch.stack([rig.agents.snapshot(k).adapter for k in range(slots)])


@pytest.mark.parametrize(
    "train",
    [{}, {"single_pass": True, "updates_per_epoch": 1}, {"kl_coef": 0.1}, {"update_rule": "awm"}],
    ids=str,
)
def test_pictures_and_updates_are_those_of_the_cpu(train):
    here = trained(make_rig(2, train=train))
    there = trained(make_rig(2, train=train, device="cuda"))
    for name in ("latents", "log_probs", "images"):
        values = getattr(there[0], name)
        assert values.is_cuda
        torch.testing.assert_close(values.cpu(), getattr(here[0], name), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(there[1].grad_norm, here[1].grad_norm, rtol=1e-2, atol=0)
    # Adam's first steps have the learning rate's size, whatever the gradient's.
    assert (there[2] - here[2]).abs().mean() < 0.02 * 1e-2


def test_agents_together_are_agents_alone():
    together = trained(make_rig(3, device="cuda"), 3)
    alone = make_rig(1, device="cuda")
    alone.agents.load(0, _perturbed_policies()[2])
    rollout = alone.rollout(alone.batch(1, 4, first_agent=2))
    torch.testing.assert_close(rollout.images, together[0].images[8:], rtol=1e-3, atol=1e-3)
    alone.updater.update(alone.agents, rollout, torch.linspace(-1, 1, 4)[None], [2])
    difference = alone.agents.snapshot(0).adapter - together[2][2]
    assert difference.abs().mean() < 0.02 * 1e-2


def _perturbed_policies():
    rig = make_rig(3)
    rig.perturb()
    return [rig.agents.snapshot(k) for k in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["ddpo", "diffusion_nft", "awm"])
def test_loops_never_wait_for_the_device(rule, dtype):
    waits = []
    for updates, rows in ((1, 64), (4, 8)):
        train = {"updates_per_epoch": updates, "rows_per_pass": rows, "update_rule": rule}
        rig = make_rig(2, make_tiny_pipe().to(dtype), train=train, device="cuda")
        trained(rig)  # kernels are loaded
        batch = rig.batch(2, 4)
        with told_of_waits() as told, torch.inference_mode():
            rollout = rig.sampler.denoise(rig.agents, batch)
        assert not told
        passes = []
        with told_of_waits() as told:
            rig.updater.update(
                rig.agents, rollout, torch.randn(2, 4), [1, 2], lambda p=passes: p.append(1)
            )
        waits.append((len(passes), len(told)))
    (few, first), (many, second) = waits
    assert many >= 4 * few
    assert first == second < 20


@contextmanager
def told_of_waits():
    """Collects torch's warnings of operations that have made the host wait."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        waits: list[str] = []
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
            messages = (str(each.message) for each in told)
            waits += [each for each in messages if "called a synchronizing" in each]


def test_a_wait_would_be_noticed():
    values = torch.ones(2, device="cuda")
    with told_of_waits() as told:
        values.sum().item()
    assert len(told) == 1


@pytest.mark.parametrize("train", [{}, {"single_pass": True, "updates_per_epoch": 1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains(dtype, train):
    rig = make_rig(2, make_tiny_pipe().to(dtype), device="cuda", train=train)
    before = torch.stack([policy.adapter for policy in _perturbed_policies()[:2]])
    rollout, stats, after = trained(rig)
    assert rollout.images.isfinite().all()
    assert stats.skipped.sum() == 0
    assert stats.ratio_error.nan_to_num(0).max() < 0.01
    layer = next(iter(rig.agents.layers.by_name.values()))
    assert layer.matrices[0].shape[1] == 8  # padded
    assert 1e-3 < (after - before).abs().max() < 0.1


@pytest.mark.parametrize("change", ["checkpointing", "offloading"])
def test_what_saves_memory_changes_nothing(change):
    changes = {"sample": {"offload_rollouts": True}} if change == "offloading" else {}
    rig = make_rig(2, device="cuda", **changes)
    if change == "checkpointing":
        rig.model.unet.enable_gradient_checkpointing()
    plain = trained(make_rig(2, device="cuda"))
    changed = trained(rig)
    torch.testing.assert_close(changed[1].grad_norm, plain[1].grad_norm, rtol=1e-3, atol=0)


@pytest.mark.filterwarnings("default")  # the compiler's own
def test_fused_layers_draw_and_train_the_same():
    plain, fused = (make_rig(2, device="cuda", speed=how) for how in ("layers", "fused"))
    assert any(type(module) is FusedGroupNorm for module in fused.model.unet.modules())
    first, second = trained(plain), trained(fused)
    torch.testing.assert_close(second[0].images, first[0].images, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(second[1].grad_norm, first[1].grad_norm, rtol=1e-2, atol=0)
    assert second[1].ratio_error.nan_to_num(0).max() < 1e-3


def run(*words):
    """Run a program of the project; returns its standard error."""
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_a_run_goes_on_and_its_front_draws(tmp_path):
    words = ["mo_train.py", *small_world(tmp_path), "--config.run_name=run"]
    folder, pictures = tmp_path / "logs" / "run", tmp_path / "pictures"
    run(*words, "--config.evolution.evolutionary_generations=0")
    run(*words, f"--config.resume_from={folder}")
    assert json.loads((folder / "config.json").read_text())["device"] == "cuda:0"
    choice = ["--weights=0.5,0.5", "--prompt=a", "--num_images=1", f"--out={pictures}"]
    run("mo_front.py", "generate", str(folder), *choice)
    assert list(pictures.glob("*.png"))


@pytest.mark.parametrize(
    "words",
    [
        ("--config.pretrained.dtype=bfloat16", "--config.speed=off"),
        ("--config.pretrained.dtype=float16", "--config.sample.offload_rollouts=True"),
        (
            "--config.pretrained.dtype=tf32",
            "--config.train.single_pass=True",
            "--config.train.updates_per_epoch=1",
        ),
        ("--config.speed=fused", "--config.pretrained.dtype=bfloat16"),
    ],
    ids=str,
)
def test_a_run_in_every_precision(words, tmp_path):
    told = run("mo_train.py", *small_world(tmp_path), *words)
    assert "could not be compiled" not in told
