"""The whole program on a tiny random model: run directory, resume, failures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from safetensors.torch import load_file

from config.settings.errors import ConfigError, UserError
from config.settings.parse import parse
from ddpo import trainer
from ddpo.rewards import REWARDS, gradients
from tests.support.pipelines import make_tiny_pipe
from tests.support.rewards import module_of
from tests.support.worlds import report_colorfulness, run_program, small_world, timeless_metrics


@pytest.fixture(scope="module", name="world")
def _world(tmp_path_factory):
    """Folder with a tiny model and prompt files; returns a function that runs the program."""
    folder = tmp_path_factory.mktemp("world")
    words = small_world(folder)

    def run(*overrides, **options):
        run_program(words, *overrides, **options)
        return folder / "logs"

    return run


def read(path):
    return json.loads(path.read_text())


def metrics(path):
    return timeless_metrics((path / "metrics.jsonl").read_text())


FULL = ("evolution.evolutionary_generations=2", "evaluation.blends_fraction=0.1")


@pytest.fixture(scope="module", name="finished")
def _finished(world):
    return world("run_name=whole", *FULL, with_plots=True) / "whole"


def test_a_run_leaves_what_the_readme_says(finished):
    for name in ("config.json", "metrics.jsonl", "history.json", "front.json"):
        assert (finished / name).stat().st_size > 0
    for name in ("front.png", "hypervolume.png", "samples.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    front = read(finished / "front.json")
    assert front["format"] == 1
    assert [o["name"] for o in front["objectives"]] == ["colorfulness", "jpeg_compressibility"]
    members = {policy["id"] for policy in front["policies"]} | set(front["dominated_on_report"])
    assert {path.name for path in (finished / "adapters").iterdir()} == members
    for policy in front["policies"]:
        weights = finished / policy["adapter"] / "pytorch_lora_weights.safetensors"
        assert load_file(weights)
        assert len(policy["report_returns"]) == len(policy["report_std_error"]) == 2
        assert sum(policy["weights"]) == pytest.approx(1)
    # two agents, three generations of one iteration of 2 x 4 images
    assert front["images"]["train"] == 2 * 3 * 8
    assert front["images"]["selection"] == 4 * 4 + 8 + 3 * 2 * 8
    assert front["hypervolume"]["report"] >= front["hypervolume"]["report_base"] > 0


def test_the_pictures_of_every_policy_are_kept(finished):
    front, search = read(finished / "front.json"), read(finished / "search.json")
    assert front["samples"]["prompts"] == 4 * ["e", "f"]
    assert len(set(front["samples"]["seeds"])) == 8
    found = [child["policy"] for entry in search["generations"] for child in entry["offspring"]]
    selection = {path.stem for path in (finished / "samples" / "selection").iterdir()}
    assert selection == {"base", *found}
    published = {policy["id"] for policy in front["policies"]}
    report = {path.stem for path in (finished / "samples" / "report").iterdir()}
    assert report >= {"base", *published}


def test_the_costs_are_those_that_the_settings_promise(world, finished):
    """`--dry_run` counts what the run then spends, but for the number of policies reported."""
    from ddpo.cost.footprint import plan_of

    front = read(finished / "front.json")
    settings = parse(ConfigDict(read(finished / "config.json")["settings"]), {})
    reported = front["images"]["report"] // settings.evaluation.report_images
    plan = plan_of(settings, num_train_prompts=4, report_policies=reported)
    assert plan.train_images == front["images"]["train"]
    assert plan.calibration_images + plan.selection_images == front["images"]["selection"]
    assert plan.report_images == front["images"]["report"]
    assert plan.sample_rows + plan.train_rows == front["unet_rows"]


def test_the_published_front_is_non_dominated_on_the_report_set(finished):
    front = read(finished / "front.json")
    returns = np.array([policy["report_returns"] for policy in front["policies"]])
    is_as_good = (returns[:, None] >= returns[None]).all(axis=-1)
    is_better = (returns[:, None] > returns[None]).any(axis=-1)
    assert not (is_as_good & is_better).any()


def test_metrics_say_what_happened(finished):
    lines = metrics(finished)
    updates = [line for line in lines if "update/approx_kl" in line]
    searches = [line for line in lines if "morl/hypervolume" in line]
    assert len(updates) == 3
    assert len(searches) == 3
    assert all(line["update/ratio_error"] < 1e-5 for line in updates)
    assert [line["cost/images"] for line in updates] == [16, 32, 48]
    volumes = [line["morl/hypervolume"] for line in searches]
    assert volumes == sorted(volumes)
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["cost/overhead_fraction"] < 1
    assert any("morl/prediction_error/colorfulness" in line for line in searches[1:])


def test_an_exported_member_draws_the_pictures_it_was_judged_by(finished):
    """front.json's returns come back from the adapter file in a plain diffusers pipeline."""
    front = read(finished / "front.json")
    pipe = make_tiny_pipe()
    member = next(policy for policy in front["policies"] if policy["id"] != "base")
    pipe.load_lora_weights(finished / member["adapter"])
    assert report_colorfulness(pipe) == pytest.approx(member["report_returns"][0], rel=1e-5)


def test_stop_and_resume_equal_an_uninterrupted_run(world, finished):
    logs = world("run_name=parts", *FULL, "evolution.evolutionary_generations=1")
    resume, longer = f"resume_from={logs / 'parts'}", "evolution.evolutionary_generations=2"
    run_program([], resume, longer)  # its own recipe
    for name in ("front.json", "history.json", "search.json"):
        assert read(logs / "parts" / name) == read(finished / name)
    for path in (finished / "policies").iterdir():
        assert path.read_bytes() == (logs / "parts" / "policies" / path.name).read_bytes()
    assert metrics(logs / "parts") == metrics(finished)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["lcm", "tcd", "euler_a"])
def test_a_run_with_a_sampler_for_few_steps_resumes_bit_for_bit(world, sampler):
    drawn = f"sample.sampler={sampler}"
    logs = world(f"run_name={sampler}", drawn)
    world(f"run_name={sampler}_parts", drawn, "evolution.evolutionary_generations=1")
    world(f"resume_from={logs / f'{sampler}_parts'}", drawn)
    for name in ("front.json", "history.json", "search.json"):
        assert read(logs / f"{sampler}_parts" / name) == read(logs / sampler / name)
    assert metrics(logs / f"{sampler}_parts") == metrics(logs / sampler)


def test_a_resumed_run_keeps_its_prompts(world, tmp_path):
    report = tmp_path / "report.txt"
    report.write_text("e\nf\n")
    changes = (f"prompts.report={report}", "evolution.evolutionary_generations=0")
    logs = world("run_name=edited", *changes)
    report.write_text("e\ng\n")
    resume = (f"resume_from={logs / 'edited'}", *changes)
    with pytest.raises(
        ConfigError, match=r"prompts\.report: its file holds other prompts"
    ) as error:
        world(*resume)
    assert "prompts.train" not in str(error.value)
    report.write_text("e\nf\n")
    original = trainer.split_prompts

    def edited_since(settings):
        report.write_text("e\ng\n")
        return original(settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "split_prompts", edited_since)
        with pytest.raises(ConfigError, match=r"prompts\.report: its file holds other prompts"):
            world(*resume)
    world(*resume, "resume_force=prompts.report")


def test_a_resumed_run_keeps_its_settings(world, finished):
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.1 and is 0\.2 now"):
        world(f"resume_from={finished}", *FULL, "train.learning_rate=0.2")


def test_without_a_warm_up_the_base_model_is_what_it_found(world):
    logs = world("run_name=cold", "evolution.warmup_generations=0")
    volumes = read(logs / "cold" / "front.json")["hypervolume"]
    assert volumes["report_warmup"] == volumes["report_base"]


def test_memory_that_the_model_does_not_fit_in_is_a_clear_error(world, monkeypatch):
    def fails(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("run.parts.Trainer", fails)
    with pytest.raises(UserError, match=r"out of memory: CUDA.*\nLower train\.rows_per_pass"):
        world("run_name=small_card")


def test_an_existing_run_is_not_overwritten(world, finished):
    with pytest.raises(UserError, match="holds a run already"):
        world("run_name=whole")
    with pytest.raises(UserError, match="is not a run directory that can be continued"):
        world("resume_from=/nowhere")


def test_a_failing_reward_ends_the_run_with_its_name_and_a_way_back(world, monkeypatch):
    calls = []

    def fails_in_the_second_generation(images, prompts):
        calls.append(len(images))
        if sum(calls) > 3 + 16 + 8 + 16 + 16 + 8:  # the dry call, then until the second generation
            raise ConnectionError("judge is gone")
        return images.mean(dim=(1, 2, 3))

    monkeypatch.setitem(REWARDS, "mine", module_of("mine", fails_in_the_second_generation))
    with pytest.raises(UserError, match="reward 'mine' failed") as error:
        world("run_name=fails", "rewards.names=mine,jpeg_compressibility")
    command = str(error.value).split("--config.resume_from=")[1]
    calls[:] = [-(10**9)]  # the judge is back
    world(f"resume_from={command}", "rewards.names=mine,jpeg_compressibility")
    assert (Path(command) / "front.json").exists()


def test_a_missing_model_is_a_clear_error(world):
    with pytest.raises(UserError, match=r"pretrained\.model='/nowhere' could not be loaded"):
        world("run_name=missing", "pretrained.model=/nowhere")


def test_a_tracker_that_fails_does_not_stop_the_run(world, monkeypatch, capsys):
    from accelerate import Accelerator

    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    specs = {"wandb": object(), "tensorboard": None}
    monkeypatch.setattr("run.trackers.importlib.util.find_spec", specs.get)
    short = "evolution.evolutionary_generations=0"
    logs = world("run_name=untracked", "trackers=wandb,tensorboard", short)
    assert (logs / "untracked" / "front.json").exists()
    shown = capsys.readouterr().err
    assert "a tracker could not be started (no network)" in shown
    assert "tracker 'tensorboard' is not installed" in shown


def test_three_objectives(world):
    logs = world(
        "run_name=three",
        "rewards.names=colorfulness,jpeg_compressibility,jpeg_incompressibility",
        "evolution.num_agents=3",
        with_plots=True,
    )
    front = read(logs / "three" / "front.json")
    assert len(front["policies"][0]["report_returns"]) == 3


# No drop is allowed: only policies that draw as variedly as the base model are archived.
GUARDS = (
    "guards.names=base_similarity,diversity,jpeg_incompressibility",
    "guards.max_drops=2,0,1000",
    "seed=1",  # some of its policies lose diversity
)


@pytest.fixture(scope="module", name="guarded")
def _guarded(world):
    return world("run_name=guarded", *GUARDS, with_plots=True) / "guarded"


def test_guards_are_published_and_keep_policies_out(guarded):
    front = read(guarded / "front.json")
    assert [guard["name"] for guard in front["guards"]] == [
        "base_similarity",
        "diversity",
        "jpeg_incompressibility",
    ]
    assert [guard["max_drop"] for guard in front["guards"]] == [2, 0, 1000]
    assert front["base"]["guards"]["base_similarity"]["value"] == pytest.approx(1)
    assert front["base"]["guards"]["diversity"]["drop"] == 0
    for policy in front["policies"]:
        assert set(policy["guards"]) == {guard["name"] for guard in front["guards"]}
        size = policy["guards"]["jpeg_incompressibility"]["value"]
        assert size == pytest.approx(-policy["report_returns"][1], rel=1e-5)
    lines = [line for line in metrics(guarded) if "guard/num_excluded" in line]
    excluded = read(guarded / "search.json")["excluded"]
    assert len(lines) == 2
    assert sum(line["guard/num_excluded"] for line in lines) == len(excluded) > 0
    assert not set(excluded) & {policy["id"] for policy in front["policies"]}
    lost = [line["guard/diversity/max_drop"] > 0 for line in lines]
    assert lost == [line["guard/num_excluded"] > 0 for line in lines]


def test_a_guarded_run_resumes_as_if_never_stopped(world, guarded):
    shorter = "evolution.evolutionary_generations=0"
    parts = world("run_name=guarded_parts", *GUARDS, shorter) / "guarded_parts"
    world(f"resume_from={parts}", *GUARDS)
    for name in ("front.json", "history.json", "search.json"):
        assert read(parts / name) == read(guarded / name)
    assert metrics(parts) == metrics(guarded)


GRADIENTS = (
    "train.update_rule=reward_gradient",
    "train.updates_per_epoch=1",
    "train.gradient_steps=1",
    "train.max_sensitivity=0",
)


@pytest.mark.parametrize(
    ("least", "said"),
    [
        (0.5, "jpeg_compressibility: the gradient of its companion is followed"),
        # On pictures of random weights the companion follows badly.
        pytest.param(0.95, "jpeg_compressibility is a black box", marks=pytest.mark.slow),
    ],
)
def test_a_run_along_gradients_of_rewards_resumes_bit_for_bit(world, monkeypatch, least, said):
    told = []
    for level in ("info", "warning"):
        monkeypatch.setattr(
            gradients.logger, level, lambda text, *values: told.append(text % values)
        )
    monkeypatch.setattr("ddpo.rewards.gradients.MIN_CORRELATION", least)
    name = f"gradients{least:g}"
    logs = world(f"run_name={name}", *GRADIENTS)
    assert any(line.startswith(said) for line in told)
    assert "colorfulness: its gradient is followed" in told
    parts = logs / f"{name}_parts"
    world(f"run_name={parts.name}", "evolution.evolutionary_generations=0", *GRADIENTS)
    world(f"resume_from={parts}", *GRADIENTS)
    for file in ("front.json", "history.json", "search.json"):
        assert read(parts / file) == read(logs / name / file)
    assert metrics(parts) == metrics(logs / name)


def test_with_black_boxes_alone_it_is_ddpo_bit_for_bit(world):
    black = "rewards.black_boxes=colorfulness,jpeg_compressibility"
    logs = world("run_name=black", black, *GRADIENTS)
    world("run_name=ddpo", *GRADIENTS, "train.update_rule=ddpo")
    assert metrics(logs / "black") == metrics(logs / "ddpo")
    for name in ("history.json", "search.json"):
        assert read(logs / "black" / name) == read(logs / "ddpo" / name)


def test_a_soup_of_the_extremes_starts_the_other_agents(world):
    logs = world("run_name=soup", "evolution.start=soup", "evolution.num_agents=3")
    search = read(logs / "soup" / "search.json")
    stages = [entry["generation"]["stage"] for entry in search["generations"]]
    assert stages == ["warmup", "soup", "evolutionary"]
    assert [len(entry["offspring"]) for entry in search["generations"]] == [2, 3, 3]
    assert read(logs / "soup" / "front.json")["images"]["train"] == (2 + 3) * 8
