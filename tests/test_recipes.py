"""Every recipe: it can be read, it says what it costs, and it trains.

Models and rewards are replaced by small random ones of the same classes. Settings of amounts are
made small; all others stay the recipe's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from config.settings.loader import load_recipe
from config.settings.rules import process_problems
from ddpo.cost.footprint import KNOWN_MODELS, measure_footprint, plan_of
from ddpo.cost.plan import expected_memory
from ddpo.prompts import split_prompts
from run.command_line import read_settings
from run.dry_run import dry_run
from tests.support.cases import few
from tests.support.clip import make_clip
from tests.support.image_reward import random_state, save_letter_tokenizer
from tests.support.paths import ROOT
from tests.support.pipelines import make_tiny_pipe
from tests.support.worlds import run_program

RECIPES = {
    path.stem: path
    for path in sorted((ROOT / "config").glob("*.py"))
    if "def get_config" in path.read_text()
}
BIG = [name for name in RECIPES if load_recipe(RECIPES[name]).pretrained.model in KNOWN_MODELS]
QUICK = {  # recipe -> hours of one RTX 4090 at most
    "aesthetic_compressibility_quick": 12,
    "aesthetic_incompressibility_quick": 12,
    "sd15_evening": 8,
    "sd15_lcm": 8,
    "sd_turbo": 8,
    "sdxl_evening": 12,
    "sdxl_lightning": 12,
    "sdxl_turbo": 8,
}
SMALL_COUNTS = (
    "num_threads=1",
    "pretrained.dtype=float32",
    "pretrained.height=0",
    "pretrained.width=0",
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
    assert set(QUICK) | {
        "aesthetic_compressibility",
        "aesthetic_incompressibility",
        "sdxl_aesthetic_compressibility",
        "pick_aesthetic",
        "clip_compressibility",
        "pick_aesthetic_compressibility",
        "sd15_one_reward",
        "sd15_trial",
    } == set(BIG)
    for name in set(BIG) - set(QUICK) - {"sd15_one_reward"}:
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


def _table(title):
    """Rows of a table of docs/recipes.md as dictionaries; another test keeps it up to date."""
    text = (ROOT / "docs/recipes.md").read_text().split(f"<!-- {title}: ")[1]
    lines = [line.strip("| ").split(" | ") for line in text.split("<!--")[0].splitlines()[1:]]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:] if len(line) > 1]


def test_quick_recipes_take_an_evening_of_one_card_and_fit_it():
    rows = {row["Recipe"]: row for row in _table("recipes")}
    for name, most in QUICK.items():
        row = rows[f"`config/{name}.py`"]
        assert 0 < float(row["RTX 4090 hours"]) <= most
        assert float(row["Peak GB"]) < 0.95 * 24
        assert float(row["Download GB"]) > 4
    variants = {row["Recipe"]: row for row in _table("small cards")}
    others = {"aesthetic_compressibility_quick", "aesthetic_incompressibility_quick"}
    assert set(variants) == {f"`{name}`" for name in set(QUICK) - others}
    for row in variants.values():
        assert float(row["Peak GB"]) < 0.95 * 12


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_recipe_has_a_guard_it_is_not_trained_on_and_fits_a_screen(name):
    settings, text = read_settings([f"--config={RECIPES[name]}"]), RECIPES[name].read_text()
    assert "image_reward" in settings.guards.names
    assert "image_reward" not in settings.rewards.names
    assert "Towards" in text or "ends" in text
    assert re.search(r"over-optim\S+( \S+)* first|first as sameness", text, re.IGNORECASE)
    assert len(text.splitlines()) <= 65


def test_a_recipe_takes_a_checkpoint_of_ones_own_by_one_setting():
    for name in QUICK:
        words = [f"--config={RECIPES[name]}", "--config.pretrained.model=my.safetensors"]
        settings = read_settings(words)  # no rule between settings is broken
        is_few = settings.sample.num_steps == 4 and settings.sample.sampler != "lcm"
        assert settings.pretrained.timestep_spacing == ("trailing" if is_few else "")


def test_the_guide_names_recipes_and_settings_that_exist():
    text = (ROOT / "docs/your_model.md").read_text()
    assert text.split("\n\n")[1].startswith("No training pictures or captions are needed.")
    rows = text.split("| You have |")[1].split("\n\n")[0]
    named = re.findall(r"\| `(\w+)` \|", rows)
    assert set(named) == {name for name in QUICK if not name.endswith("_quick")}
    settings = set(read_settings([]).flat())
    for setting in re.findall(r"(?:--config\.|`)([a-z]+\.[a-z_]+)[=`]", text):
        assert setting in settings


# The others are slower, or alike.
DRY = {"aesthetic_compressibility"}


@pytest.mark.parametrize("name", few(BIG, DRY))
def test_a_dry_run_says_what_a_recipe_needs(name, monkeypatch):
    """On the card that its docstring names, with its rewards' models beside it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = read_settings([f"--config={RECIPES[name]}"])
    report = dry_run(settings)
    for reward in settings.rewards.names:
        state = "ready" if reward.startswith("jpeg") else "needs a download"
        assert re.search(rf"{reward} \[.*\]: {state}", report)
    downloads = report.split("Downloads\n")[1]
    assert "safetensors; " in downloads
    assert "for rewards and guards: " in downloads
    assert downloads.rstrip().endswith("GB in all")
    plan = plan_of(settings, len(split_prompts(settings.prompts).train))
    footprint = measure_footprint(settings)
    if name.startswith("sdxl"):
        assert footprint.unet_parameters == 2_567_463_684
    peak = expected_memory(settings, plan, footprint).peak / 1e9
    card = 24
    assert peak < 0.95 * card
    doc = re.search(r"one card of (\d+) GB", RECIPES[name].read_text())
    assert doc.group(1) == str(card)


@pytest.fixture(scope="module", name="small")
def _small(tmp_path_factory):
    """Overrides that replace models, rewards and prompts by small ones of the same kind."""
    folder = tmp_path_factory.mktemp("small")
    for kind in ("sd1", "sd2", "sdxl"):
        pipe = make_tiny_pipe(kind)
        pipe.scheduler.register_to_config(prediction_type="epsilon")
        pipe.save_pretrained(folder / kind)
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = {f"{layer}.lora_down.weight": torch.ones(2, 16), f"{layer}.alpha": torch.tensor(2.0)}
    lora[f"{layer}.lora_up.weight"] = torch.full((16, 2), 0.01)
    save_file(lora, folder / "lora.safetensors")
    torch.save(random_state(), folder / "ImageReward.pt")
    save_letter_tokenizer(folder / "bert")
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
    sources.append(f"image_reward.model={folder / 'ImageReward.pt'}")
    sources.append(f"image_reward.tokenizer={folder / 'bert'}")

    def overrides(pretrained, name):
        known = KNOWN_MODELS.get(pretrained.model, "")
        kind = {"sdxl": "sdxl", "sd-2.1-base": "sd2"}.get(known, "sd1")
        lora = [f"pretrained.lora={folder / 'lora.safetensors'}"] if pretrained.lora else []
        few = [f"evolution.num_agents={2 if name in QUICK else 3}"] if name in BIG else []
        return [
            *lora,
            *few,
            *SMALL_COUNTS,
            f"rewards.sources={','.join(sources)}",
            f"pretrained.model={folder / kind}",
            f"prompts.train={folder / 'train.txt'}",
            f"prompts.report={folder / 'report.txt'}",
            f"logdir={folder}",
        ]

    return overrides


# One of each family of models, update rule, sampler and reward's class; the others are alike.
TRAINED = {
    "aesthetic_compressibility",
    "base",
    "faithful",
    "sd15_evening",
    "sd15_lcm",
    "sd_turbo",
    "sdxl_turbo",
}


@pytest.mark.parametrize("name", few(RECIPES, TRAINED))
def test_a_recipe_trains_a_generation(name, small):
    pretrained = load_recipe(RECIPES[name]).pretrained
    words = [f"--config={RECIPES[name]}", f"--config.run_name={name}"]
    changes = small(pretrained, name)
    run_program(words, *changes)
    settings = read_settings([*words, *(f"--config.{change}" for change in changes)])
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
