"""The models and prompt sets that ship with the project."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from ddpo.assets import ASSETS
from ddpo.model.loading import load_pipeline
from tests.support.rig import make_settings
from tools import emoji_data
from tools.emoji_clip import similarity
from tools.emoji_judge import load_judge
from tools.measure_emoji_sd import Sampling, draw

CAPTIONS = list(emoji_data.CAPTIONS)
DRAWN = ["cat", "dog", "lion", "fox", "panda", "frog", "pig", "owl"]


@pytest.fixture(scope="module")
def pipeline():
    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS / "emoji-sd", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def clip():
    return CLIPModel.from_pretrained(ASSETS / "emoji-clip", local_files_only=True).eval()


@pytest.fixture(scope="module")
def tokens():
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "emoji-clip", local_files_only=True)
    batch = tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt")
    return batch.input_ids


@pytest.fixture(scope="module")
def drawn(pipeline):
    """Two pictures of each caption, as the reinforcement learner samples them."""
    prompts = [caption for caption in DRAWN for _ in range(2)]
    return draw(pipeline, prompts, list(range(len(prompts))), Sampling(steps=10))


def test_the_embedded_model_has_what_transformers_4_asks_for():
    """A vocabulary with merges, and text encoder weights below text_model."""
    folder = ASSETS / "emoji-sd"
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    assert json.loads((folder / "tokenizer" / "vocab.json").read_text()) == model["vocab"]
    version, *merges = (folder / "tokenizer" / "merges.txt").read_text().splitlines()
    assert version == "#version: 0.2"
    assert [tuple(merge.split(" ")) for merge in merges] == [tuple(m) for m in model["merges"]]
    weights = folder / "text_encoder" / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118


@pytest.fixture(scope="module")
def labels():
    return torch.tensor([CAPTIONS.index(caption) for caption in DRAWN for _ in range(2)])


def own_cosines(clip, images, tokens, labels):
    with torch.no_grad():
        return similarity(clip, images, tokens).gather(1, labels[:, None])[:, 0]


def test_models_take_at_most_16_megabytes():
    files = [path for path in ASSETS.glob("emoji-*/**/*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6


def test_a_plain_load_gives_float32(pipeline, clip):
    modules = [pipeline.unet, pipeline.vae, pipeline.text_encoder, clip]
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.float32}


def test_scheduler_has_the_settings_of_stable_diffusion_15(pipeline):
    expected = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "epsilon",
    }
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert {key: pipeline.scheduler.config[key] for key in expected} == expected


def test_the_image_processor_maps_bytes_to_plus_minus_one():
    processor = CLIPImageProcessor.from_pretrained(ASSETS / "emoji-clip", local_files_only=True)
    white = torch.full((32, 32, 3), 255, dtype=torch.uint8).numpy()
    pixels = processor(white, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels, torch.ones_like(pixels))


def test_prompt_files_are_the_known_captions_and_do_not_overlap():
    train = (ASSETS / "prompts" / "emoji_animals.txt").read_text().split("\n")[:-1]
    report = (ASSETS / "prompts" / "emoji_report.txt").read_text().split("\n")[:-1]
    assert train == list(emoji_data.TRAIN_CAPTIONS)
    assert report == list(emoji_data.REPORT_CAPTIONS)
    assert not set(train) & set(report)


def test_each_caption_is_one_token_and_any_text_can_be_encoded(pipeline):
    assert all(len(pipeline.tokenizer.tokenize(caption)) == 1 for caption in CAPTIONS)
    tokenizer = pipeline.tokenizer
    ids = tokenizer("Zürich 3%!", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids


def test_the_judge_recognises_what_is_drawn(drawn, labels):
    judge = load_judge(ASSETS / "emoji-judge" / "judge.safetensors")
    with torch.no_grad():
        answers = judge(drawn).argmax(1)
    assert (answers == labels).float().mean() >= 0.8


def test_clip_prefers_the_right_caption(clip, tokens, drawn, labels):
    with torch.no_grad():
        cosines = similarity(clip, drawn, tokens)
    assert (cosines.argmax(1) == labels).float().mean() >= 0.75
    right = F.one_hot(labels, len(CAPTIONS)).bool()
    assert cosines[right].mean() > cosines[~right].mean() + 0.4


@pytest.mark.parametrize("way", ["fade", "blur", "noise", "cover"])
def test_the_clip_score_falls_as_a_picture_is_degraded(clip, tokens, drawn, labels, way):
    def degraded(amount):
        if way == "fade":
            return torch.lerp(drawn, drawn.mean((2, 3), keepdim=True).expand_as(drawn), amount)
        if way == "blur":
            cells = round(32 * (1 - amount)) + 2
            small = F.interpolate(drawn, (cells, cells), mode="area")
            return F.interpolate(small, (32, 32), mode="bilinear")
        if way == "noise":
            noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0))
            return (drawn + 0.7 * amount * noise).clamp(0, 1)
        covered = drawn.clone()
        covered[:, :, :, : round(32 * amount)] = 0.5
        return covered

    scores = [
        own_cosines(clip, degraded(amount), tokens, labels).mean().item()
        for amount in (0.0, 0.5, 0.75, 1.0)
    ]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.65 * scores[0]


def test_an_empty_picture_shows_no_caption(clip, tokens):
    greys = torch.linspace(0, 1, 8).view(8, 1, 1, 1).expand(8, 3, 32, 32)
    with torch.no_grad():
        assert similarity(clip, greys, tokens).max() < 0.5


@pytest.fixture(scope="module")
def few_step_pipeline():
    """As a run loads it, by its name."""
    return load_pipeline(make_settings(pretrained={"lora": "emoji-lcm"}).pretrained)


def test_the_few_step_lora_is_small_and_brings_its_sampler(few_step_pipeline):
    (file,) = (ASSETS / "emoji-lcm").glob("*.safetensors")
    assert file.stat().st_size <= 0.8e6
    assert isinstance(few_step_pipeline.scheduler, LCMScheduler)


def test_the_few_step_model_draws_what_is_asked_for_without_guidance(few_step_pipeline, labels):
    prompts = [CAPTIONS[label] for label in labels]
    sampling = Sampling(steps=4, guidance=1.0)
    images = draw(few_step_pipeline, prompts, list(range(len(prompts))), sampling)
    judge = load_judge(ASSETS / "emoji-judge" / "judge.safetensors")
    with torch.no_grad():
        answers = judge(images).argmax(1)
    assert (answers == labels).float().mean() >= 0.8


def test_diffusers_merges_the_few_step_lora_to_the_same_weights(few_step_pipeline):
    folder = ASSETS / "emoji-sd"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.load_lora_weights(ASSETS / "emoji-lcm")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    theirs = pipeline.unet.state_dict()
    for name, weight in few_step_pipeline.unet.state_dict().items():
        torch.testing.assert_close(weight, theirs[name], msg=name)
