"""The tools that build the embedded model, on random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tools import emoji_data, emoji_vae
from tools.emoji_bank import LATENT_CHANNELS, PatchComponents, to_unit
from tools.emoji_damage import DAMAGES, damage
from tools.emoji_measures import ground_colours, sharpness
from tools.emoji_names import GROUNDS
from tools.emoji_text import GROUND_TEMPLATES, build_tokenizer, ground_table, phrases_of, tokenize
from tools.emoji_training import Course, TrainingRun, kept_path
from tools.emoji_unet import Captions


@pytest.fixture(scope="module")
def bank():
    rng = np.random.default_rng(0)
    sprite = Image.fromarray(rng.integers(0, 256, (40, 30, 4), np.uint8), "RGBA")
    sprites = {"cat": sprite, "dog": sprite.rotate(90)}
    return list(emoji_data.render_bank(sprites, 16, seed=0))


@pytest.fixture(scope="module")
def images(bank):
    return to_unit(torch.from_numpy(np.stack([row.picture for row in bank])))


def test_backgrounds_have_the_colour_of_their_ground():
    rng = np.random.default_rng(0)
    grounds = torch.arange(len(GROUNDS)).repeat_interleave(4)
    drawn = [emoji_data.draw_background(rng, ground=ground) for ground in grounds.tolist()]
    images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)
    assert (ground_colours(images) == grounds).float().mean() > 0.9


def test_the_bank_has_named_and_other_grounds(bank):
    named = [row.ground < emoji_data.NO_GROUND for row in bank]
    assert 0.2 < np.mean(named) < 0.8
    assert {row.caption for row in bank} == {0, 1}


def test_latents_are_scaled_principal_components(images):
    pictures = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    components = PatchComponents.of(pictures)
    latents = components.factor * components.project(images)
    assert latents.shape == (len(images), LATENT_CHANNELS, 8, 8)
    assert latents.std().item() == pytest.approx(1, abs=1e-3)


def test_the_growing_decoder_ends_as_the_decoder():
    torch.manual_seed(0)
    vae = emoji_vae.build_vae()
    decoder, latents = emoji_vae.GrowingDecoder(vae), torch.randn(2, LATENT_CHANNELS, 8, 8)
    for stages in (1, 2, 3, 4):
        answers = decoder(latents, stages)
        assert [answer.shape for answer in answers] == [(2, 3, 64, 64)] * stages
    torch.testing.assert_close(answers[-1], vae.decode(latents).sample)


@pytest.mark.parametrize("way", DAMAGES)
def test_every_damage_changes_a_picture_and_keeps_its_shape(images, way):
    generator = torch.Generator().manual_seed(0)
    worse = DAMAGES[way](images[0] / 2 + 0.5, images[1] / 2 + 0.5, 0.5, generator)
    assert worse.shape == images[0].shape
    assert (worse - images[0] / 2 - 0.5).abs().mean() > 0.01


def test_damage_says_how_good_a_picture_still_is(images):
    clean = images / 2 + 0.5
    spoilt, quality = damage(clean, torch.Generator().manual_seed(0))
    untouched = (spoilt == clean).flatten(1).all(1)
    assert torch.equal(untouched, quality == 1)
    assert quality[~untouched].max() <= 0.6


def test_sharpness_falls_by_blurring(images):
    generator = torch.Generator()
    sharp = images / 2 + 0.5
    soft = torch.stack([DAMAGES["blur"](image, image, 0.2, generator) for image in sharp])
    assert sharpness(soft) < 0.5 * sharpness(sharp)


def test_captions_name_the_ground_only_where_it_has_a_name():
    tokenizer = build_tokenizer()
    captions = torch.zeros(400, dtype=torch.long)
    grounds = torch.full((400,), emoji_data.NO_GROUND)
    grounds[200:] = list(GROUNDS).index("green")
    tokens = Captions(tokenizer).draw(captions, grounds, torch.Generator().manual_seed(0))
    green = tokenize(tokenizer, ["green"])[0, 1]
    names_it = (tokens == green).any(1)
    assert not names_it[:200].any()
    assert 0.4 < names_it[200:].float().mean() < 0.7
    assert ground_table(tokenizer).shape[2] == len(GROUND_TEMPLATES)
    assert phrases_of("owl", "orange")[1] == "an owl on an orange ground"


def test_a_training_run_keeps_weights_and_continues(tmp_path):
    def train(steps):
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 1)
        course = Course(path=tmp_path / "run.pt", steps=steps, seed=0, batch=4)
        run = TrainingRun("test", layer, course, peak=0.1, keep=(8,))
        count = 0
        for generator in run:
            run.update(layer(torch.randn(course.batch, 2, generator=generator)).square().mean())
            count += 1
        return count

    assert train(10) == 10
    assert kept_path(tmp_path / "run.pt", 8).exists()
    assert train(15) == 5
