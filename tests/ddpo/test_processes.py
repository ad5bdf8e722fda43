"""Several processes: who owns what, the same results whatever their number, and failures."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from config.settings.derived import patience
from config.settings.errors import UserError
from config.settings.rules import process_problems
from ddpo.processes import Processes, Share, backends_for
from ddpo.rewards import REWARDS
from tests.support.paths import ROOT
from tests.support.pipelines import make_tiny_pipe
from tests.support.processes import run_processes, values
from tests.support.rewards import module_of
from tests.support.rig import make_settings
from tests.support.worlds import leave_plots_blank


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    """A tiny model and prompts."""
    folder = tmp_path_factory.mktemp("processes")
    make_tiny_pipe().save_pretrained(folder / "model")
    (folder / "train.txt").write_text("a\nb\nc\nd\n")
    (folder / "report.txt").write_text("e\nf\n")
    return folder


@given(
    num_agents=st.integers(1, 12),
    count=st.integers(1, 12),
    blocks=st.integers(1, 30),
    block=st.integers(1, 4),
)
def test_every_sample_of_every_agent_is_owned_once_and_evenly(num_agents, count, blocks, block):
    samples = blocks * block
    shares = [
        Share.of(rank, count, num_agents=num_agents, num_samples=samples, block=block)
        for rank in range(count)
    ]
    owned = Counter((k, i) for share in shares for k in share.agents for i in share.samples)
    assert owned == Counter((k, i) for k in range(num_agents) for i in range(samples))
    assert {len(share.agents) for share in shares} == {num_agents // math.gcd(num_agents, count)}
    sizes = {len(share.samples) for share in shares}
    assert max(sizes) - min(sizes) <= block
    assert all(share.samples.start % block == 0 for share in shares)


def test_more_processes_than_images_of_an_update_is_a_clear_error():
    flat = make_settings().flat()
    assert list(process_problems(flat, 48)) == []  # 4 agents, 12 images per update: 12 share one
    (problem,) = process_problems(flat, 52)
    assert "leaves 12 of an agent's 48 images to an update, fewer than the 13 processes" in problem
    soup = {**flat, "evolution.start": "soup"}  # whose warm-up has 2 agents
    (problem,) = process_problems(soup, 28)
    assert "fewer than the 14 processes that share it while there are 2 agents" in problem


# --- the same results whatever the number of processes --------------------------------------------


def brightness(images, prompts):
    return images.mean(dim=(1, 2, 3))


def redness(images, prompts):
    return 100 * images[:, 0].mean(dim=(1, 2))


def settings_for(
    folder,
    num_agents,
    bright=brightness,
    generations=2,
    kind="population",
    start="even_weights",
    update="ppo",
    sampler="",
    **top,
):
    """A tiny run with two smooth rewards; 5 images per update, which 2 processes share unevenly.

    In a single pass, or by gradients of rewards, it takes one update of 9 images, which they share
    unevenly too.
    """
    is_one_step = update != "ppo"
    for name, reward in {"bright": bright, "red": redness}.items():
        REWARDS[name] = module_of(name, reward, is_differentiable=name == "bright")
    settings = make_settings(
        pretrained={"model": str(folder / "model")},
        prompts={"train": str(folder / "train.txt"), "report": str(folder / "report.txt")},
        rewards={"names": ("bright", "red")},
        agents={"kind": kind},
        sample={
            "num_steps": 3,
            "sampler": sampler,
            "guidance_scale": 3.0,
            "rows_per_pass": 32,
            "prompts_per_iteration": 3 if is_one_step else 5,
            "images_per_prompt": 3 if is_one_step else 2,
        },
        train={
            "learning_rate": 0.02,
            "max_sensitivity": 0.0,
            "updates_per_epoch": 1 if is_one_step else 2,
            "num_inner_epochs": 1 if is_one_step else 2,
            "timestep_fraction": 1.0 if is_one_step else 0.67,
            "single_pass": update == "single_pass",
            "update_rule": "reward_gradient" if update == "reward_gradient" else "ddpo",
            "rows_per_pass": 32,
        },
        evaluation={"num_steps": 4, "selection_images": 8, "report_images": 8},
        evolution={
            "num_agents": max(2, num_agents),
            "start": start,
            "strategy": "fixed_weights" if kind == "conditioned" else "prediction_guided",
            "warmup_generations": 1,
            "evolutionary_generations": generations - 1,
            "iterations_per_generation": 1,
        },
    )
    evolution = dataclasses.replace(settings.evolution, num_agents=num_agents)
    return dataclasses.replace(settings, evolution=evolution, num_threads=1, **top)


def train(folder, num_tasks, num_agents, count, kind, update="ppo", sampler="ddim"):
    """Two iterations and an evaluation in float64: everything that a process knows afterwards.

    With fewer tasks than agents it is the warm-up of a soup.
    """
    from ddpo.agents import adam
    from ddpo.devices import DTYPES
    from ddpo.evaluation import evaluation_set
    from ddpo.trainer import Trainer

    DTYPES["float32"] = torch.float64
    adam.EPSILON = 1e-4  # the step is then no sign of a gradient that is rounding
    start = "even_weights" if num_tasks == num_agents else "soup"
    how = {"kind": kind, "start": start, "update": update, "sampler": sampler}
    settings = settings_for(folder, num_agents, **how)
    reductions = []
    all_reduce = torch.distributed.all_reduce

    def counting(values, group=None):
        reductions.append((tuple(values.shape), group and group.size()))
        return all_reduce(values, group=group)

    torch.distributed.all_reduce = counting
    processes = Processes.start(settings.task_counts, timeout_seconds=60)
    assert (processes.count, processes.rank) == (count, int(os.environ["RANK"]))
    trainer = Trainer(settings, processes, lambda *_: lambda: None)
    first = torch.linspace(0, 1, num_tasks)
    weights, scales = torch.stack([first, 1 - first], dim=1), (0.01, 1.0)
    trainer.load([trainer.agents.initial_policy()] * num_tasks, weights)
    trainer.calibrate(scales, (1.0, 0.0) if update == "reward_gradient" else ())
    batches, stats = [], []
    for index in range(2):
        batches.append(trainer.draw(0, index))
        stats.append(trainer.update(batches[-1], trainer.advantages(batches[-1])))
    members = count // math.gcd(num_tasks, count)
    shape = trainer.agents.gradients.shape
    blocks = [size for reduced, size in reductions if reduced == shape and size is not None]
    optimiser_steps = 8 if update == "ppo" else 2  # 2 iterations x 2 epochs x 2 updates
    assert blocks == ([members] * optimiser_steps if members > 1 else [])
    policies = trainer.policies()
    on = evaluation_set("selection", ["a", "b"], 5, run_seed=3)
    evaluations = trainer.evaluate([*policies, trainer.agents.initial_policy()], on, 3)
    rows = trainer.take_unet_rows()
    trainer.close()
    processes.close()
    buffers = [policy.statistics.buffers for policy in policies]
    return {
        "rewards": torch.stack([batch.rewards.values for batch in batches]).numpy(),
        "update": [list(each.metrics().values()) for each in stats],
        "adapters": torch.stack([policy.adapter for policy in policies]).numpy(),
        "moments": torch.stack([policy.exp_avg for policy in policies]).numpy(),
        "statistics": [row for b in buffers for prompt in sorted(b) for row in b[prompt]],
        "evaluations": torch.stack([e.rewards for e in evaluations]).numpy(),
        "images": torch.stack([e.images for e in evaluations]).numpy().astype(int),
        "counts": [rows, *(policy.step for policy in policies)],
    }


@pytest.mark.parametrize(
    ("num_tasks", "num_agents", "counts", "kind", "update", "sampler"),
    [
        pytest.param(4, 4, (1, 4), "population", "ppo", "ddim", marks=pytest.mark.slow),
        pytest.param(3, 3, (1, 2), "population", "ppo", "ddim", marks=pytest.mark.slow),
        pytest.param(1, 1, (1, 2), "population", "ppo", "ddim", marks=pytest.mark.slow),
        pytest.param(
            2, 3, (1, 2), "population", "ppo", "ddim", marks=pytest.mark.slow
        ),  # a process for each agent now, one group later
        pytest.param(
            2, 4, (1, 4), "population", "ppo", "ddim", marks=pytest.mark.slow
        ),  # two processes share an agent now, none do later
        pytest.param(
            2, 2, (1, 4), "conditioned", "ppo", "ddim", marks=pytest.mark.slow
        ),  # two groups of two, all with the whole family
        pytest.param(3, 3, (1, 2), "population", "single_pass", "ddim", marks=pytest.mark.slow),
        pytest.param(2, 2, (1, 4), "population", "single_pass", "ddim", marks=pytest.mark.slow),
        (3, 3, (1, 2), "population", "reward_gradient", "ddim"),
        pytest.param(3, 3, (1, 2), "population", "ppo", "lcm", marks=pytest.mark.slow),
        pytest.param(3, 3, (1, 2), "population", "ppo", "tcd", marks=pytest.mark.slow),
        pytest.param(
            3, 3, (1, 2), "population", "reward_gradient", "euler_a", marks=pytest.mark.slow
        ),
    ],
)
def test_the_result_does_not_depend_on_the_number_of_processes(
    folder, num_tasks, num_agents, counts, kind, update, sampler
):
    what = folder, num_tasks, num_agents
    (alone,), *several = (
        values(run_processes(count, train, *what, count, kind, update, sampler)) for count in counts
    )
    assert alone["adapters"].dtype == np.float64
    for one in (result for results in several for result in results):
        assert one["counts"] == alone["counts"]
        assert one["images"].shape == (num_tasks + 1, 3, 3, 16, 16)
        assert np.array_equal(one["images"], alone["images"])
        for name in ("rewards", "evaluations", "statistics"):  # they are float32
            np.testing.assert_allclose(one[name], alone[name], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(one["update"], alone["update"], rtol=1e-5, atol=1e-6)
        for name in ("adapters", "moments"):
            error = np.abs(one[name] - alone[name]).max() / np.abs(alone[name]).max()
            assert error < 1e-6, name
    for results in several:  # not only nearly: what one process knows, all know
        assert all(np.array_equal(one["adapters"], results[0]["adapters"]) for one in results)


def run(folder, num_agents, resume_from="", patience=60.0, **changes):
    """The whole program."""
    import mo_train
    from ddpo.agents import adam
    from run import parts

    leave_plots_blank(pytest.MonkeyPatch())
    parts.patience = lambda _: patience
    adam.EPSILON = 1e-4  # as in `train`
    settings = settings_for(
        folder, num_agents, logdir=str(folder / "logs"), resume_from=resume_from, **changes
    )
    mo_train.main(settings)


def read(folder, run_name):
    path = folder / "logs" / run_name
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return json.loads((path / "search.json").read_text()), lines


def close(one, other):
    """Whether two JSON values are the same, numbers up to float32 rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float):
        return one == pytest.approx(other, rel=1e-2, abs=2e-4)
    return one == other


def test_a_run_and_its_continuation_do_not_depend_on_the_number_of_processes(folder):
    whole = {"run_name": "whole"}
    first = {"run_name": "parts", "generations": 1}
    rest = {"resume_from": str(folder / "logs" / "parts")}
    for count, changes in ((1, whole), (2, first), (1, rest)):
        assert values(run_processes(count, run, folder, 2, **changes)) == [None] * count
    (search, lines), (parts, part_lines) = read(folder, "whole"), read(folder, "parts")
    assert close(search, parts)
    assert [line["step"] for line in lines] == [line["step"] for line in part_lines]
    for name in ("reward/bright/mean", "update/grad_norm", "update/loss"):
        assert close([line.get(name) for line in lines], [line.get(name) for line in part_lines])


# --- failures ---------------------------------------------------------------------------------

_calls: list[int] = []


def is_time(rank):
    """Whether this process is to fail now: in training, after the base model's evaluation."""
    _calls.append(1)
    return len(_calls) > 6 and os.environ["RANK"] == str(rank)


def failing(images, prompts):
    if is_time(1):
        raise ConnectionError("judge is gone")
    return brightness(images, prompts)


def dying(images, prompts):
    if is_time(1):
        os._exit(3)
    return brightness(images, prompts)


def hanging(images, prompts):
    if is_time(1):
        time.sleep(100)
    return brightness(images, prompts)


def test_a_reward_that_fails_in_one_process_is_an_orderly_error_in_all(folder):
    ended = run_processes(2, run, folder, 2, run_name="fails", bright=failing)
    for rank, message in enumerate(("process 1 failed: reward 'bright'", "reward 'bright' failed")):
        assert ended[rank].exit_code == 1
        assert ended[rank].error.startswith(f"UserError: {message}")
        assert "judge is gone" in ended[rank].error
    assert f"--config.resume_from={folder / 'logs' / 'fails'}" in ended[0].error


def test_processes_wait_for_one_another_as_long_as_a_reward_may_take_and_ten_minutes_at_least():
    assert (patience(30), patience(3600)) == (600, 3600)


@pytest.mark.parametrize(
    ("how", "limit"), [(dying, 1000), pytest.param(hanging, 10, marks=pytest.mark.slow)]
)
def test_a_process_that_dies_or_hangs_ends_the_others_and_is_named(folder, how, limit):
    """A dead process is noticed immediately, long before the time limit."""
    ended = run_processes(
        2, run, folder, 2, run_name=how.__name__, bright=how, patience=limit, wait_for=0
    )
    assert "process 0 waited for the results of all processes, in vain" in ended[0].error
    assert f"process 1 did not arrive: it died, or hung for {limit} s" in ended[0].error
    assert ended[1].exit_code == (3 if how is dying else None)


@pytest.mark.slow  # two other tests start processes with the variables that torchrun sets
def test_torchrun_starts_two_processes_of_which_one_speaks(folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    settings = {
        "num_threads": 1,
        "pretrained.model": folder / "model",
        "prompts.train": folder / "train.txt",
        "prompts.report": folder / "report.txt",
        "rewards.names": "colorfulness,jpeg_compressibility",
        "logdir": folder / "logs",
        "run_name": "torchrun",
    }
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    done = subprocess.run(
        [*command, "mo_train.py", "--config=config/smoke.py", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("generation 2 of 2 in") == 1
    assert "16 x 16 pixels, on cpu in 2 processes" in done.stdout
    assert "Traceback" not in done.stderr
    front = json.loads((folder / "logs" / "torchrun" / "front.json").read_text())
    assert front["images"]["train"] == 2 * 2 * 8  # of both processes


def test_a_decision_that_fails_fails_everywhere():
    ended = run_processes(2, decide)
    assert ended[0].error == "OSError: disk is full"
    assert ended[1].error == "ProcessError: process 0 failed: disk is full"


def decide():
    processes = Processes.start([2], timeout_seconds=60)
    assert processes.by_first(os.environ.get, "RANK") == "0"
    processes.by_first(fill_the_disk)


def fill_the_disk():
    assert os.environ["RANK"] == "0"  # nobody else comes here
    raise OSError("disk is full")


def test_what_a_process_died_of_is_told_by_the_others():
    ended = run_processes(2, crash)
    assert ended[0].error.startswith("ProcessError: process 0 waited for the results")
    assert "process 1 failed: MemoryError: 3 bytes were missing" in ended[0].error


def crash():
    processes = Processes.start([2], timeout_seconds=60)
    try:
        processes.gather("well" if processes.rank == 0 else run_out_of_memory())
    except Exception as error:
        processes.close(error)
        raise


def run_out_of_memory():
    raise MemoryError("3 bytes were missing")


def test_what_is_on_a_gpu_goes_by_nccl_and_what_is_on_the_host_by_gloo():
    assert backends_for("cuda") == "cpu:gloo,cuda:nccl"
    assert backends_for("cpu") == "gloo"


def test_processes_that_cannot_meet_are_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"the 2 processes could not meet: .*RANK expected"):
        Processes.start([2], timeout_seconds=60)
