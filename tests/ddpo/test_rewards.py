"""Every reward: a known score, and a known order."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ddpo.rewards import REWARDS
from ddpo.rewards.clip_alignment import ClipAlignment, preprocess
from ddpo.rewards.colorfulness import colorfulness
from ddpo.rewards.jpeg import JpegSize


def noise_and_plain():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 32, 32, generator=generator)
    return torch.stack([noise, torch.full((3, 32, 32), 0.5)])


def test_jpeg_size_is_that_of_the_file_in_kilobytes():
    images = noise_and_plain()
    pixels = (images[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    small, large = JpegSize(-1)(images, ["x", "x"]), JpegSize(1)(images, ["x", "x"])
    assert large[0].item() == pytest.approx(len(file.getvalue()) / 1000)
    assert torch.equal(small, -large)
    assert small[1] > small[0]


def test_colorfulness_by_hand_and_in_order():
    red_blue = torch.zeros(3, 2, 2)
    red_blue[0, 0] = 1.0  # upper row red, lower row blue
    red_blue[2, 1] = 1.0
    # rg = 255, 255, 0, 0: var 127.5^2, mean 127.5; yb = 127.5, 127.5, -255, -255: var 191.25^2,
    # mean -63.75
    expected = np.hypot(127.5, 191.25) + 0.3 * np.hypot(127.5, 63.75)
    grey = torch.full((3, 2, 2), 0.3)
    scores = colorfulness(torch.stack([red_blue, grey, 0.5 * red_blue]), [""] * 3)
    assert scores[0].item() == pytest.approx(expected, rel=1e-5)
    assert scores[1].item() == pytest.approx(0, abs=1e-4)
    assert scores[0] > scores[2] > scores[1]


@pytest.fixture(scope="module", name="clip_folder")
def _clip_folder(tmp_path_factory):
    """A random CLIP of the real classes, saved and loaded from disk."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    from tests.conftest import LETTERS

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(c + "</w>" for c in LETTERS)]
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 2
    config = CLIPConfig(
        text_config={"vocab_size": len(words), "max_position_embeddings": 8, **sizes, **special},
        vision_config={"image_size": 28, "patch_size": 7, **sizes},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8).save_pretrained(folder)
    crop = {"height": 28, "width": 28}
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=crop).save_pretrained(folder)
    return str(folder)


def test_clip_alignment_is_the_cosine_of_plain_transformers(clip_folder):
    from transformers import CLIPModel, CLIPTokenizer

    reward = ClipAlignment(clip_folder, torch.device("cpu"))
    images = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    prompts = ["a b", "c", "a b"]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=preprocess(images, reward.processor), **tokens)
    expected = F.cosine_similarity(out.image_embeds, out.text_embeds)
    torch.testing.assert_close(reward(images, prompts), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (64, 48), (20, 33)])
def test_clip_preprocessing_agrees_with_the_image_processor(clip_folder, shape):
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(clip_folder)
    smooth = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    image = F.interpolate(smooth, shape, mode="bicubic").clamp(0, 1).mul(255).round().div(255)
    pil = Image.fromarray((image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    theirs = processor(pil, return_tensors="pt")["pixel_values"]
    ours = preprocess(image, processor)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.02  # Pillow rounds to bytes between the two passes


def test_aesthetic_score_is_the_published_predictor(tmp_path, clip_folder):
    """Against an independent restatement: a chain of affine maps of the unit image embedding."""
    from safetensors.torch import save_file
    from transformers import CLIPModel

    from ddpo.rewards.aesthetic_score import AestheticScore

    widths = (8, 1024, 128, 64, 16, 1)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for index, (n_in, n_out) in zip((0, 2, 4, 6, 7), itertools.pairwise(widths), strict=True):
        state[f"layers.{index}.weight"] = torch.randn(n_out, n_in, generator=generator) / n_in**0.5
        state[f"layers.{index}.bias"] = torch.randn(n_out, generator=generator)
    save_file(state, tmp_path / "head.safetensors")
    torch.save(state, tmp_path / "head.pth")
    images = torch.rand(2, 3, 28, 28, generator=generator)
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    scores = []
    for name in ("head.safetensors", "head.pth"):
        reward = AestheticScore(clip_folder, str(tmp_path / name), torch.device("cpu"))
        scores.append(reward(images, ["", ""]))
    with torch.no_grad():
        pixels = preprocess((images * 255).round() / 255, reward.processor)
        x = F.normalize(clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    for index in (0, 2, 4, 6, 7):
        x = x @ state[f"layers.{index}.weight"].T + state[f"layers.{index}.bias"]
    torch.testing.assert_close(scores[0], x.squeeze(-1), rtol=1e-4, atol=1e-4)
    assert torch.equal(scores[0], scores[1])


def test_the_published_head_loads_where_it_is_at_hand():
    from ddpo.rewards.aesthetic_score import load_head

    path = Path(__file__).parents[3] / "shared" / "data" / "aesthetic_head.pth"
    if not path.is_file():
        pytest.skip("the published aesthetic head is not on this machine")
    head = load_head(str(path))
    assert sum(p.numel() for p in head.parameters()) == 927_969


def test_a_pickle_in_a_head_file_is_not_run(tmp_path):
    import pickle

    from ddpo.rewards.aesthetic_score import load_head

    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    torch.save({"0.weight": Attack()}, tmp_path / "head.pth")
    with pytest.raises(pickle.UnpicklingError):
        load_head(str(tmp_path / "head.pth"))
    assert not (tmp_path / "run").exists()


def test_the_table_names_units():
    assert {name: entry.unit for name, entry in REWARDS.items()} == {
        "jpeg_compressibility": "-kB",
        "jpeg_incompressibility": "kB",
        "colorfulness": "Hasler-Suesstrunk M",
        "clip_alignment": "cosine",
        "aesthetic_score": "LAION 1-10",
    }
