"""Every recipe: it can be read, it says what it costs, and it trains.

Models and rewards are replaced by small random ones of the same classes; the settings that say what
is done stay the recipe's, those that say how much are made small.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mo_train
from config.settings.loader import load_recipe
from config.settings.rules import process_problems
from ddpo.cost.footprint import KNOWN_MODELS, measure_footprint, plan_of
from ddpo.cost.plan import expected_memory
from ddpo.prompts import split_prompts
from run.command_line import read_settings
from run.dry_run import dry_run
from tests.support.clip import make_clip
from tests.support.paths import ROOT
from tests.support.pipelines import make_tiny_pipe
from tools.doc_tables import PAGES, with_tables

RECIPES = {
    path.stem: path
    for path in sorted((ROOT / "config").glob("*.py"))
    if "def get_config" in path.read_text()
}
BIG = [name for name in RECIPES if load_recipe(RECIPES[name]).pretrained.model in KNOWN_MODELS]
SMALL_COUNTS = (
    "num_threads=1",
    "pretrained.dtype=float32",
    "sample.num_steps=4",
    "sample.prompts_per_iteration=2",
    "sample.images_per_prompt=4",
    "evaluation.calibration_prompts=2",
    "evaluation.selection_images=8",
    "evaluation.report_images=4",
    "evolution.warmup_generations=1",
    "evolution.evolutionary_generations=0",
    "evolution.iterations_per_generation=1",
)


def test_the_recipes_asked_for_are_there():
    assert {
        "aesthetic_compressibility",
        "aesthetic_incompressibility",
        "sdxl_aesthetic_compressibility",
        "pick_aesthetic",
        "clip_compressibility",
        "pick_aesthetic_compressibility",
        "sd15_trial",
    } == set(BIG)
    for name in BIG:
        settings = read_settings([f"--config={RECIPES[name]}"])
        is_published = name not in {"sdxl_aesthetic_compressibility", "sd15_trial"}
        assert not list(process_problems(settings.flat(), 8))  # eight cards can share it
        assert settings.evolution.num_agents == (6 if is_published else 4)
        if is_published:  # DDPO's published numbers
            sample, train = settings.sample, settings.train
            assert sample.prompts_per_iteration * sample.images_per_prompt == 256
            assert (sample.num_steps, sample.guidance_scale, sample.eta) == (50, 5, 1)
            assert (train.learning_rate, train.clip_nats, train.max_sensitivity) == (3e-4, 1.64, 0)
            assert (train.updates_per_epoch, train.weight_decay) == (4, 1e-4)


@pytest.mark.parametrize("name", BIG)
def test_a_dry_run_says_what_a_recipe_needs(name, monkeypatch):
    """On the card that its docstring names, with its rewards' models beside it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = read_settings([f"--config={RECIPES[name]}"])
    report = dry_run(settings)
    for reward in settings.rewards.names:
        state = "ready" if reward.startswith("jpeg") else "needs a download"
        assert re.search(rf"{reward} \[.*\]: {state}", report)
    assert "safetensors; " in report.splitlines()[-1]
    plan = plan_of(settings, len(split_prompts(settings.prompts).train))
    footprint = measure_footprint(settings)
    if name.startswith("sdxl"):
        assert footprint.unet_parameters == 2_567_463_684
    peak = expected_memory(settings, plan, footprint).peak / 1e9
    card, rewards = 24, 1.8
    if "pick_score" in settings.rewards.names:
        rewards += 3.9  # CLIP-H in float32
    assert peak + rewards < 0.95 * card
    doc = re.search(r"one card of (\d+) GB", RECIPES[name].read_text())
    assert doc.group(1) == str(card)


@pytest.fixture(scope="module", name="small")
def _small(tmp_path_factory):
    """Overrides that replace models, rewards and prompts by small ones of the same kind."""
    folder = tmp_path_factory.mktemp("small")
    for kind in ("sd1", "sdxl"):
        make_tiny_pipe(kind).save_pretrained(folder / kind)
    make_clip(folder / "clip")
    torch.manual_seed(0)
    sizes = [(8, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
    head = {}
    for layer, (width, out) in zip((0, 2, 4, 6, 7), sizes, strict=True):
        head[f"layers.{layer}.weight"] = torch.randn(out, width) / width**0.5
        head[f"layers.{layer}.bias"] = torch.zeros(out)
    save_file(head, folder / "head.safetensors")
    (folder / "train.txt").write_text("a\nb\nc\nd\n")
    (folder / "report.txt").write_text("e\nf\n")
    clips = ("clip_alignment.clip", "clip_score.clip", "aesthetic_score.clip", "pick_score.model")
    clips += ("pick_score.processor", "base_similarity.clip", "diversity.clip")
    sources = [f"{part}={folder / 'clip'}" for part in clips]
    sources.append(f"aesthetic_score.head={folder / 'head.safetensors'}")

    def overrides(model):
        kind = "sdxl" if KNOWN_MODELS.get(model) == "sdxl" else "sd1"
        return [
            *SMALL_COUNTS,
            f"rewards.sources={','.join(sources)}",
            f"pretrained.model={folder / kind}",
            f"prompts.train={folder / 'train.txt'}",
            f"prompts.report={folder / 'report.txt'}",
            f"logdir={folder}",
        ]

    return overrides


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_a_generation(name, small):
    model = load_recipe(RECIPES[name]).pretrained.model
    words = [f"--config={RECIPES[name]}", f"--config.run_name={name}"]
    settings = read_settings([*words, *(f"--config.{change}" for change in small(model))])
    mo_train.main(settings)
    front = json.loads((Path(settings.logdir) / name / "front.json").read_text())
    assert [o["name"] for o in front["objectives"]] == list(settings.rewards.names)
    is_soup = settings.evolution.start == "soup"  # whose warm-up trains one agent per objective
    trained = len(settings.rewards.names) if is_soup else settings.evolution.num_agents
    assert front["images"]["train"] == trained * 8
    assert [guard["name"] for guard in front.get("guards", [])] == list(settings.guards.names)
    lines = (Path(settings.logdir) / name / "metrics.jsonl").read_text().splitlines()
    updates = [line for line in map(json.loads, lines) if "update/grad_norm" in line]
    assert len(updates) == 1
    assert updates[0]["update/grad_norm"] > 0


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_in_the_documentation_are_those_of_the_code(page):
    """Mend them with `python -m tools.doc_tables`."""
    assert with_tables(page) == (ROOT / page).read_text()
