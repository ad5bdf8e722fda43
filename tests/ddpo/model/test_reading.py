"""Prompts of any length, fewer layers of the text encoders, and guidance that is rescaled."""

from __future__ import annotations

import pytest
import torch

from config.settings.errors import UserError
from ddpo.model.families import Reading
from ddpo.model.stable_diffusion import FrozenDiffusion
from ddpo.types import Conditioning
from run.dry_run import dry_run
from tests.support.cases import few
from tests.support.drawing import draw
from tests.support.pipelines import (
    KINDS,
    TWO_KINDS,
    draw_with_diffusers,
    load_plain,
    make_tiny_pipe,
)
from tests.support.rig import make_rig, make_settings

LONG = "abcdef ghijk"  # eleven tokens; the tiny models read six at a time


def model_of(kind, **reading):
    return FrozenDiffusion(make_tiny_pipe(kind), reading=Reading(**reading))


def with_layers(kind, count=3):
    """A pipeline whose text encoders have that many layers."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    pipe = make_tiny_pipe(kind)
    torch.manual_seed(1)
    for name, make in (
        ("text_encoder", CLIPTextModel),
        ("text_encoder_2", CLIPTextModelWithProjection),
    ):
        if hasattr(pipe, name):
            config = getattr(pipe, name).config
            config.num_hidden_layers = count
            setattr(pipe, name, make(config).eval())
    return pipe


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prompt_is_its_parts_side_by_side(kind):
    model = model_of(kind, max_parts=2)
    whole, first, second = (model.encode_prompts([text]) for text in (LONG, "abcdef", "ghijk"))
    assert whole.text.shape[1] == 16
    # The letter that ends a word is another token than the same letter within one.
    pipe = model.pipe
    tokens = [pipe.tokenizer.convert_tokens_to_ids(t) for t in ["a", "b", "c", "d", "e", "f</w>"]]
    assert Reading(max_parts=2).parts(pipe.tokenizer, LONG)[0] == [0, *tokens, 1]
    assert torch.equal(whole.text, torch.cat([first.text, second.text], dim=1))
    if kind == "sdxl":  # which is also given the first part as a whole
        assert torch.equal(whole.pooled, first.pooled)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_fits_is_read_as_diffusers_reads_it(kind):
    model = model_of(kind, max_parts=3)
    theirs = make_tiny_pipe(kind)
    for text in ("", "a", "abcdef"):
        expected, _, *pooled = theirs.encode_prompt(
            text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        ours = model.encode_prompts([text])
        assert torch.equal(ours.text, expected)
        assert kind != "sdxl" or torch.equal(ours.pooled, pooled[0])
    cut = model_of(kind).encode_prompts([LONG])  # one part only
    assert torch.equal(cut.text, model.encode_prompts(["abcdef"]).text)


def test_prompts_that_are_cut_are_known():
    texts = ["", "abcdef", "abcdefg", LONG, LONG + "l", "abcdef" * 3]
    assert model_of("sd1").cut(texts) == texts[2:]
    assert model_of("sdxl", max_parts=2).cut(texts) == texts[5:]
    assert model_of("sd1", max_parts=3).cut(texts) == []


@pytest.mark.parametrize("kind", few(KINDS, TWO_KINDS))
def test_prompts_that_differ_in_their_ends_are_drawn_differently(kind):
    one, other = draw(make_tiny_pipe(kind), [LONG, "abcdef xyzab"], [3, 3], {"prompt_parts": 2})
    assert not torch.allclose(one, other, atol=1e-3)
    same, as_it = draw(make_tiny_pipe(kind), [LONG, "abcdef xyzab"], [3, 3], {"prompt_parts": 1})
    assert torch.equal(same, as_it)


@pytest.mark.parametrize("kind", few(KINDS, TWO_KINDS))
def test_a_picture_depends_on_no_other_prompts_length(kind):
    """1, 2 and 3 parts together are 6, each repeated, which attention does not see."""
    texts = ["a", LONG, "abcdef" * 3]
    together = draw(make_tiny_pipe(kind), texts, [3, 4, 5], {"prompt_parts": 3})
    for text, seed, picture in zip(texts, [3, 4, 5], together, strict=True):
        (alone,) = draw(make_tiny_pipe(kind), [text], [seed], {"prompt_parts": 3})
        torch.testing.assert_close(picture, alone, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("rounded_as_diffusers")
@pytest.mark.parametrize("kind", few(KINDS, TWO_KINDS))
def test_a_long_prompt_is_drawn_as_diffusers_draws_its_embeddings(kind):
    pipe = make_tiny_pipe(kind)
    model = FrozenDiffusion(make_tiny_pipe(kind), reading=Reading(max_parts=2))
    negative, prompt = Conditioning.of_one_length(
        [model.encode_negative(""), model.encode_prompts([LONG])]
    )
    embeds = {"prompt_embeds": prompt.text, "negative_prompt_embeds": negative.text}
    if kind == "sdxl":
        embeds |= {"pooled_prompt_embeds": prompt.pooled}
        embeds |= {"negative_pooled_prompt_embeds": negative.pooled}
    ours = draw(pipe, [LONG], [3], {"prompt_parts": 2}, guidance_scale=5.0)
    plain = model.pipe
    plain.scheduler = model.scheduler()
    plain.set_progress_bar_config(disable=True)
    theirs = plain(
        **embeds,
        generator=[torch.Generator().manual_seed(3)],
        output_type="pt",
        num_inference_steps=4,
        guidance_scale=5.0,
        eta=1.0,
    ).images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip_leaves_out_the_last_layers(skip):
    """SD: the final norm of an earlier layer, as diffusers does with transformers 4."""
    pipe = with_layers("sd1")
    embeds = FrozenDiffusion(pipe, reading=Reading(clip_skip=skip)).encode_prompts(["abc"]).text
    assert not torch.equal(embeds, FrozenDiffusion(pipe).encode_prompts(["abc"]).text)
    encoder = pipe.text_encoder
    del getattr(encoder, "text_model", encoder).encoder.layers[-skip:]  # by hand
    assert torch.equal(embeds, FrozenDiffusion(pipe).encode_prompts(["abc"]).text)


def test_clip_skip_of_sdxl_is_that_of_diffusers():
    pipe = with_layers("sdxl", 4)
    for skip in (1, 2):
        expected, _, pooled, _ = pipe.encode_prompt(
            "abc", device="cpu", do_classifier_free_guidance=False, clip_skip=skip
        )
        model = FrozenDiffusion(pipe, reading=Reading(clip_skip=skip))
        encoded = model.encode_prompts(["abc"])
        assert torch.equal(encoded.text, expected)
        assert torch.equal(encoded.pooled, pooled)


def test_more_layers_than_there_are_cannot_be_left_out(tmp_path):
    for kind, most in (("sd1", 2), ("sdxl", 1)):
        with_layers(kind).save_pretrained(tmp_path / kind)
        settings = make_settings(pretrained={"model": str(tmp_path / kind), "clip_skip": most + 1})
        with pytest.raises(UserError, match=rf"clip_skip={most + 1} leaves .* at most {most}"):
            FrozenDiffusion.load(settings.pretrained)
        with pytest.raises(UserError, match=rf"clip_skip={most + 1} leaves .* at most {most}"):
            dry_run(settings)
        settings = make_settings(pretrained={"model": str(tmp_path / kind), "clip_skip": most})
        FrozenDiffusion.load(settings.pretrained)


@pytest.mark.usefixtures("rounded_as_diffusers")
@pytest.mark.parametrize("kind", few(KINDS, TWO_KINDS))
def test_rescaled_guidance_is_bitwise_that_of_diffusers(kind, tmp_path):
    make_tiny_pipe(kind).save_pretrained(tmp_path)
    expected = draw_with_diffusers(load_plain(tmp_path), ["a", "b"], [3, 4], guidance_rescale=0.7)
    sample = {"guidance_scale": 5.0, "guidance_rescale": 0.7}
    assert torch.equal(draw(load_plain(tmp_path), ["a", "b"], [3, 4], {}, **sample), expected)
    without = draw(load_plain(tmp_path), ["a", "b"], [3, 4], {}, guidance_scale=5.0)
    assert not torch.equal(without, expected)


def test_the_ratio_is_one_with_long_prompts_and_rescaled_guidance():
    rig = make_rig(2, sample={"guidance_rescale": 0.7})
    rig.model._reading = Reading(max_parts=2)
    rig.perturb()
    batch = rig.sampler.prompt_batch(["a", LONG] * 4, range(8), 2)
    stats = rig.updater.update(rig.agents, rig.rollout(batch), torch.randn(2, 4), [1, 2])
    assert stats.ratio_error.nan_to_num(0).max() < 1e-5
    assert stats.grad_norm.min() > 0
