"""The models and prompt sets that ship with the project."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from ddpo.assets import ASSETS
from ddpo.model.loading import load_pipeline
from ddpo.rewards.emoji_beauty import load_beauty
from tests.support.rig import make_settings
from tools import emoji_data
from tools.emoji_beauty import beauty
from tools.emoji_clip import similarity
from tools.emoji_damage import DAMAGES
from tools.emoji_judge import load_judge
from tools.emoji_measures import ground_colours
from tools.measure_emoji_sd import Sampling, draw

CAPTIONS = list(emoji_data.CAPTIONS)
ANIMALS = [*emoji_data.TRAIN_CAPTIONS, *emoji_data.REPORT_CAPTIONS]
DRAWN = ["cat", "dog", "lion", "fox", "panda", "frog", "pig", "owl"]


@dataclass(frozen=True, slots=True)
class Size:
    """The models of one size."""

    name: str
    pixels: int
    captions: list[str]
    prediction_type: str

    def part(self, name):
        return ASSETS / f"{self.name}-{name}"


SMALL = Size("emoji", 32, ANIMALS, "epsilon")
LARGE = Size("emoji64", 64, CAPTIONS, "v_prediction")
both = pytest.mark.parametrize("size", [SMALL, LARGE], indirect=True, ids=lambda size: size.name)
large = pytest.mark.parametrize("size", [LARGE], indirect=True, ids=lambda size: size.name)


@pytest.fixture(scope="module")
def size(request):
    return request.param


@pytest.fixture(scope="module")
def pipeline(size):
    pipeline = StableDiffusionPipeline.from_pretrained(size.part("sd"), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def clip(size):
    return CLIPModel.from_pretrained(size.part("clip"), local_files_only=True).eval()


@pytest.fixture(scope="module")
def tokens(size):
    tokenizer = CLIPTokenizer.from_pretrained(size.part("clip"), local_files_only=True)
    batch = tokenizer(size.captions, padding="max_length", truncation=True, return_tensors="pt")
    return batch.input_ids


@pytest.fixture(scope="module")
def drawn(pipeline):
    """Two pictures of each caption, as the reinforcement learner samples them."""
    prompts = [caption for caption in DRAWN for _ in range(2)]
    return draw(pipeline, prompts, list(range(len(prompts))), Sampling(steps=10))


@both
def test_the_embedded_model_has_what_transformers_4_asks_for(size):
    """A vocabulary with merges, and text encoder weights below text_model."""
    folder = size.part("sd")
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


@pytest.fixture(scope="module")
def head():
    return load_beauty()


def own_cosines(clip, images, tokens, labels):
    with torch.no_grad():
        return similarity(clip, images, tokens).gather(1, labels[:, None])[:, 0]


def test_models_take_at_most_28_megabytes():
    files = [path for path in ASSETS.glob("emoji*/**/*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 28e6


@both
def test_a_plain_load_gives_float32(pipeline, clip):
    modules = [pipeline.unet, pipeline.vae, pipeline.text_encoder, clip]
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.float32}


@both
def test_scheduler_has_the_noise_levels_of_stable_diffusion(size, pipeline):
    expected = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": size.prediction_type,
    }
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert {key: pipeline.scheduler.config[key] for key in expected} == expected


@both
def test_the_image_processor_maps_bytes_to_plus_minus_one(size):
    processor = CLIPImageProcessor.from_pretrained(size.part("clip"), local_files_only=True)
    white = torch.full((size.pixels, size.pixels, 3), 255, dtype=torch.uint8).numpy()
    pixels = processor(white, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, size.pixels, size.pixels)
    torch.testing.assert_close(pixels, torch.ones_like(pixels))


def test_prompt_files_are_the_known_captions_and_do_not_overlap():
    train = (ASSETS / "prompts" / "emoji_animals.txt").read_text().split("\n")[:-1]
    report = (ASSETS / "prompts" / "emoji_report.txt").read_text().split("\n")[:-1]
    assert train == list(emoji_data.TRAIN_CAPTIONS)
    assert report == list(emoji_data.REPORT_CAPTIONS)
    things = (ASSETS / "prompts" / "emoji_things.txt").read_text().split("\n")[:-1]
    assert [*train, *report, *things] == CAPTIONS
    assert len(set(CAPTIONS)) == len(CAPTIONS)


@both
def test_each_word_of_a_caption_is_one_token_and_any_text_can_be_encoded(size, pipeline):
    tokenizer = pipeline.tokenizer
    for caption in size.captions:
        assert len(tokenizer.tokenize(caption)) == len(caption.split())
    ids = tokenizer("Zürich 3%!", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids


@both
def test_the_judge_recognises_what_is_drawn(size, drawn, labels):
    judge = load_judge(size.part("judge") / "judge.safetensors")
    with torch.no_grad():
        answers = judge(drawn).argmax(1)
    assert (answers == labels).float().mean() >= 0.8


@both
def test_clip_prefers_the_right_caption(size, clip, tokens, drawn, labels):
    with torch.no_grad():
        cosines = similarity(clip, drawn, tokens)
    assert (cosines.argmax(1) == labels).float().mean() >= 0.75
    right = F.one_hot(labels, len(size.captions)).bool()
    assert cosines[right].mean() > cosines[~right].mean() + 0.4


@both
@pytest.mark.parametrize("way", ["fade", "blur", "noise", "cover"])
def test_the_clip_score_falls_as_a_picture_is_degraded(size, clip, tokens, drawn, labels, way):
    def degraded(amount):
        if way == "fade":
            return torch.lerp(drawn, drawn.mean((2, 3), keepdim=True).expand_as(drawn), amount)
        if way == "blur":
            cells = round(size.pixels * (1 - amount)) + 2
            small = F.interpolate(drawn, (cells, cells), mode="area")
            return F.interpolate(small, (size.pixels, size.pixels), mode="bilinear")
        if way == "noise":
            noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0))
            return (drawn + 0.7 * amount * noise).clamp(0, 1)
        covered = drawn.clone()
        covered[:, :, :, : round(size.pixels * amount)] = 0.5
        return covered

    scores = [
        own_cosines(clip, degraded(amount), tokens, labels).mean().item()
        for amount in (0.0, 0.5, 0.75, 1.0)
    ]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.65 * scores[0]


@both
def test_an_empty_picture_shows_no_caption(size, clip, tokens):
    greys = torch.linspace(0, 1, 8).view(8, 1, 1, 1).expand(8, 3, size.pixels, size.pixels)
    with torch.no_grad():
        assert similarity(clip, greys, tokens).max() < 0.5


@large
def test_grounds_can_be_asked_for(pipeline):
    grounds = list(emoji_data.GROUNDS)
    prompts = [
        f"a {DRAWN[i % len(DRAWN)]} on a {ground} ground" for i, ground in enumerate(grounds)
    ]
    images = draw(pipeline, prompts, list(range(len(prompts))), Sampling(steps=10))
    right = ground_colours(images) == torch.arange(len(grounds))
    assert right.float().mean() >= 0.7


@large
@pytest.mark.parametrize("way", [*sorted(DAMAGES.keys() - {"warp"}), "white noise", "flat colour"])
def test_beauty_falls_when_a_picture_is_damaged(clip, head, drawn, way):
    generator = torch.Generator().manual_seed(0)
    if way == "white noise":
        worse = torch.rand(drawn.shape, generator=generator)
    elif way == "flat colour":
        worse = torch.rand(len(drawn), 3, 1, 1, generator=generator).expand_as(drawn)
    else:
        rows = range(len(drawn))
        damaged = [DAMAGES[way](drawn[i], drawn[i - 2], 0.7, generator) for i in rows]
        worse = torch.stack(damaged).clamp(0, 1)
    with torch.no_grad():
        fall = beauty(clip, head, drawn) - beauty(clip, head, worse)
    assert fall.mean() > 1
    assert fall.gt(0).float().mean() >= 0.75


@large
def test_beauty_has_gradients_and_takes_any_size(clip, head, drawn):
    images = F.interpolate(drawn[:2], (96, 96), mode="bilinear").requires_grad_()
    beauty(clip, head, images).sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def few_step_pipeline():
    """As a run loads it, by its name."""
    return load_pipeline(make_settings(pretrained={"lora": "emoji-lcm"}).pretrained)


def test_the_few_step_lora_is_small_and_brings_its_sampler(few_step_pipeline):
    (file,) = (ASSETS / "emoji-lcm").glob("*.safetensors")
    assert file.stat().st_size <= 0.8e6
    assert isinstance(few_step_pipeline.scheduler, LCMScheduler)


def test_the_few_step_model_draws_what_is_asked_for_without_guidance(few_step_pipeline, labels):
    prompts = [ANIMALS[label] for label in labels]
    sampling = Sampling(steps=4, guidance=1.0)
    images = draw(few_step_pipeline, prompts, list(range(len(prompts))), sampling)
    judge = load_judge(SMALL.part("judge") / "judge.safetensors")
    with torch.no_grad():
        answers = judge(images).argmax(1)
    assert (answers == labels).float().mean() >= 0.8


def test_diffusers_merges_the_few_step_lora_to_the_same_weights(few_step_pipeline):
    folder = SMALL.part("sd")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.load_lora_weights(ASSETS / "emoji-lcm")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    theirs = pipeline.unet.state_dict()
    for name, weight in few_step_pipeline.unet.state_dict().items():
        torch.testing.assert_close(weight, theirs[name], msg=name)
