"""Every reward: a known score, and a known order."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from config.settings.errors import UserError
from ddpo.rewards import EMOJI_CLIP, REWARDS, parts_of, reward_entry
from ddpo.rewards.aesthetic_score import load_head
from ddpo.rewards.brightness import brightness
from ddpo.rewards.clip import clip_pixels, load_clip
from ddpo.rewards.colorfulness import colorfulness
from ddpo.rewards.hps_v2 import clean
from ddpo.rewards.image_batch import ImageBatch
from ddpo.rewards.jpeg_compressibility import JpegSize
from ddpo.rewards.rms_contrast import rms_contrast
from ddpo.rewards.scorer import Scorer
from ddpo.rewards.sharpness import sharpness
from tests.support.clip import SIZES, WORDS, make_clip
from tests.support.paths import ROOT
from tests.support.pipelines import of_8_bits
from tests.support.rewards import build
from tests.support.rig import make_settings

CPU = torch.device("cpu")


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


def stripes():
    """Rows of 4 x 4 pixels: black, grey 0.5, white, and columns of black and white."""
    columns = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(3, 4, 4)
    return torch.stack([torch.full((3, 4, 4), grey) for grey in (0.0, 0.5, 1.0)] + [columns])


def test_sharpness_by_hand_and_in_order():
    scores = sharpness(stripes(), [""] * 4)
    # inner columns are 255 and 0 with both side neighbours 0 and 255: the Laplacian is -510, 510
    torch.testing.assert_close(scores, torch.tensor([0.0, 0, 0, 510.0**2]), rtol=1e-4, atol=1e-4)
    ramp = torch.linspace(0, 1, 8).expand(1, 3, 8, 8)
    assert sharpness(ramp, [""]).item() == pytest.approx(0, abs=1e-3)
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(noise, 3, stride=1, padding=1)
    assert sharpness(noise, [""]) > sharpness(blurred, [""]) > 0


def test_rms_contrast_by_hand():
    green = torch.zeros(1, 3, 4, 4)
    green[:, 1, :2] = 1.0  # half the picture has luma 0.587
    scores = rms_contrast(torch.cat([stripes(), green]), [""] * 5)
    expected = torch.tensor([0, 0, 0, 0.5, 0.587 / 2])
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)


def test_brightness_by_hand():
    scores = brightness(stripes(), [""] * 4)
    # sRGB 0.5 is ((0.5 + 0.055) / 1.055)^2.4 = 0.21404 of white's light
    expected = torch.tensor([0, 0.21404, 1, 0.5])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)
    pure = torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 2, 2)
    torch.testing.assert_close(brightness(pure, [""] * 3), torch.tensor([0.2126, 0.7152, 0.0722]))


@pytest.fixture(scope="module", name="clip_folder")
def _clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    make_clip(folder)
    return str(folder)


def smooth_images(rows, height, width, seed=1):
    """Pictures of 8 bits per channel in which a resize has something to interpolate."""
    coarse = torch.rand(rows, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    images = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return of_8_bits(images)


def as_pil(images):
    arrays = images.permute(0, 2, 3, 1).mul(255).round().byte().numpy()
    return [Image.fromarray(array) for array in arrays]


def plain_clip(folder, images, prompts):
    """Unit image and text embeddings from transformers' own classes, as its documentation does."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(as_pil(images), return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(folder)(list(prompts), padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**pixels, **tokens)
    return out.image_embeds, out.text_embeds


@pytest.mark.parametrize("shape", [(64, 64), (64, 48), (60, 99), (56, 56), (512, 512)])
def test_clip_preprocessing_is_that_of_the_image_processor(clip_folder, shape):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    images = smooth_images(2, *shape)
    theirs = processor(as_pil(images), return_tensors="pt")["pixel_values"]
    ours = clip_pixels(ImageBatch(images), processor)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


PROMPTS = ["a b", "c", "a b"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clip_alignment", lambda cosine: cosine),
        ("clip_score", lambda cosine: 100 * cosine.clamp(min=0)),
        ("pick_score", lambda cosine: math.exp(4.0) * cosine),
    ],
)
def test_rewards_on_clip_are_what_they_say(clip_folder, name, expected):
    reward = build(name, **dict.fromkeys(parts_of(name), clip_folder))
    images = smooth_images(3, 64, 64)
    image_embeds, text_embeds = plain_clip(clip_folder, images, PROMPTS)
    cosine = F.cosine_similarity(image_embeds, text_embeds)
    assert cosine.min() < 0 < cosine.max()
    torch.testing.assert_close(reward(images, PROMPTS), expected(cosine), rtol=1e-4, atol=1e-4)


def random_head(width, seed=0):
    """A head's tensors under the published names."""
    generator, state = torch.Generator().manual_seed(seed), {}
    widths = itertools.pairwise((width, 1024, 128, 64, 16, 1))
    for index, (n_in, n_out) in zip((0, 2, 4, 6, 7), widths, strict=True):
        state[f"layers.{index}.weight"] = torch.randn(n_out, n_in, generator=generator) / n_in**0.5
        state[f"layers.{index}.bias"] = torch.randn(n_out, generator=generator)
    return state


@pytest.mark.parametrize("file", ["head.safetensors", "head.pth"])
def test_aesthetic_score_is_the_published_predictor(tmp_path, clip_folder, file):
    """Against a restatement: affine maps, in float64, of the unit image embedding."""
    state = random_head(8)
    save_file(state, tmp_path / "head.safetensors")
    torch.save(state, tmp_path / "head.pth")
    images = smooth_images(3, 72, 72)
    reward = build("aesthetic_score", clip=clip_folder, head=tmp_path / file)
    x = plain_clip(clip_folder, images, ["a"] * 3)[0].double()
    x = x / x.square().sum(dim=1, keepdim=True).sqrt()
    for index in (0, 2, 4, 6, 7):
        x = x @ state[f"layers.{index}.weight"].double().T + state[f"layers.{index}.bias"]
    torch.testing.assert_close(reward(images, ["", "", ""]).double(), x[:, 0], rtol=1e-4, atol=1e-4)


def test_rewards_on_one_clip_load_it_once_and_embed_each_picture_once(
    tmp_path, clip_folder, monkeypatch
):
    save_file(random_head(8), tmp_path / "head.safetensors")
    names = ("clip_score", "aesthetic_score", "clip_alignment")
    sources = (f"{name}.clip={clip_folder}" for name in names)
    settings = make_settings(
        rewards={
            "names": names,
            "sources": (*sources, f"aesthetic_score.head={tmp_path / 'head.safetensors'}"),
        }
    ).rewards
    scorer = Scorer.build(settings, CPU)
    clips = {id(reward.clip) for reward in scorer.rewards.values()}
    assert len(clips) == 1
    clip, embedded = scorer.rewards["clip_score"].clip, []
    features = clip.model.get_image_features
    monkeypatch.setattr(
        clip.model,
        "get_image_features",
        lambda pixel_values: (embedded.append(len(pixel_values)), features(pixel_values))[1],
    )
    rewards = scorer.gather([scorer.submit(smooth_images(4, 64, 64), ["a"] * 4)], 1)
    assert embedded == [4]
    assert rewards.is_valid.all()


def test_reward_models_run_in_the_precision_that_is_set(clip_folder):
    half = load_clip(clip_folder, CPU, "bfloat16")
    full = load_clip(clip_folder, CPU, "float32")
    assert half is not full
    assert half.model.dtype == torch.bfloat16
    batch = ImageBatch(smooth_images(2, 64, 64))
    assert half.cosine(batch, ["a", "b"]).dtype == torch.float32
    torch.testing.assert_close(
        half.cosine(batch, ["a", "b"]), full.cosine(batch, ["a", "b"]), rtol=0, atol=0.1
    )


def open_clip_names(model):
    """A CLIPModel's tensors in open_clip's naming and layout: the published form of HPS v2."""
    ours, out = model.state_dict(), {}
    for prefix, half in (("", "text_model"), ("visual.", "vision_model")):
        for i in range(SIZES["num_hidden_layers"]):
            here, block = f"{half}.encoder.layers.{i}.", f"{prefix}transformer.resblocks.{i}."
            for kind in ("weight", "bias"):
                parts = [ours[f"{here}self_attn.{part}_proj.{kind}"] for part in "qkv"]
                out[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
                for theirs, name in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ):
                    out[f"{block}{theirs}.{kind}"] = ours[f"{here}{name}.{kind}"]
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = ours[f"text_model.final_layer_norm.{kind}"]
        out[f"visual.ln_pre.{kind}"] = ours[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = ours[f"vision_model.post_layernorm.{kind}"]
    embeddings = "vision_model.embeddings."
    out["visual.class_embedding"] = ours[f"{embeddings}class_embedding"]
    out["visual.conv1.weight"] = ours[f"{embeddings}patch_embedding.weight"]
    out["visual.positional_embedding"] = ours[f"{embeddings}position_embedding.weight"]
    out["visual.proj"] = ours["visual_projection.weight"].T.contiguous()
    out["token_embedding.weight"] = ours["text_model.embeddings.token_embedding.weight"]
    out["positional_embedding"] = ours["text_model.embeddings.position_embedding.weight"]
    out["text_projection"] = ours["text_projection.weight"].T.contiguous()
    out["logit_scale"] = ours["logit_scale"]
    return out


def open_clip_forward(state, pixels, tokens):
    """open_clip's CLIP from its tensors: image and text embeddings before they are normalised."""

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def blocks(x, prefix, mask=None):
        for i in range(SIZES["num_hidden_layers"]):
            block = f"{prefix}transformer.resblocks.{i}."
            h = norm(x, f"{block}ln_1")
            qkv = F.linear(
                h, state[f"{block}attn.in_proj_weight"], state[f"{block}attn.in_proj_bias"]
            )
            heads = SIZES["num_attention_heads"]
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            if mask is not None:
                scores = scores + mask
            mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
            x = x + linear(mixed, f"{block}attn.out_proj")
            h = F.gelu(linear(norm(x, f"{block}ln_2"), f"{block}mlp.c_fc"))
            x = x + linear(h, f"{block}mlp.c_proj")
        return x

    patches = F.conv2d(pixels, state["visual.conv1.weight"], stride=14).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], dim=1) + state["visual.positional_embedding"]
    x = blocks(norm(x, "visual.ln_pre"), "visual.")
    image = norm(x[:, 0], "visual.ln_post") @ state["visual.proj"]
    y = state["token_embedding.weight"][tokens] + state["positional_embedding"][: tokens.shape[1]]
    causal = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
    y = norm(blocks(y, "", causal), "ln_final")
    return image, y[:, -1] @ state["text_projection"]


def test_hps_v2_is_open_clips_model_from_its_published_names(tmp_path):
    model = make_clip(tmp_path / "clip", hidden_act="gelu")
    state = open_clip_names(model)
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "hps.pt")
    reward = build("hps_v2", model=tmp_path / "hps.pt", processor=tmp_path / "clip")
    images = smooth_images(2, 56, 56)
    mean, std = reward.clip.processor.image_mean, reward.clip.processor.image_std
    pixels = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    tokens = torch.tensor([[0, WORDS.index("a</w>"), 1], [0, WORDS.index("b</w>"), 1]])
    cosine = F.cosine_similarity(*open_clip_forward(state, pixels, tokens))
    torch.testing.assert_close(reward(images, ["a", "b"]), 100 * cosine, rtol=1e-4, atol=1e-3)


OPEN_CLIP = {  # what open_clip 3.3.0's basic_clean and whitespace_clean make of a text
    "a store front with ‘openai’ written on it": "a store front with 'openai' written on it",
    "a “red” cat": 'a "red" cat',
    "caf&amp;eacute; &lt;b&gt;": "café <b>",
    "a ﬁsh, don\u00e2\u20ac\u2122t": "a fish, don't",
    "  a\u2028cat \t on\n a mat ": "a cat on a mat",
    "cafe\u0301 ＣＡＴ": "café CAT",
}


@pytest.mark.parametrize("text", OPEN_CLIP)
def test_hps_v2_cleans_a_text_as_open_clip_does(text):
    assert clean(text) == OPEN_CLIP[text]


def test_hps_v2_scores_the_clean_text(tmp_path):
    state = open_clip_names(make_clip(tmp_path / "clip", hidden_act="gelu"))
    torch.save(state, tmp_path / "hps.pt")
    reward = build("hps_v2", model=tmp_path / "hps.pt", processor=tmp_path / "clip")
    images = smooth_images(2, 56, 56)
    assert torch.equal(reward(images, ["ﬁ", "&#97;b"]), reward(images, ["fi", "ab"]))


def test_weights_of_another_model_are_refused(tmp_path, clip_folder):
    state = random_head(8)
    del state["layers.7.bias"]
    save_file(state, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match=r"(?s)aesthetic_score\.head=.*other tensors: .*7\.bias"):
        load_head(str(tmp_path / "head.safetensors"))
    with pytest.raises(UserError, match=r"rewards\.sources: hps_v2\.model=.*CLIP has no tensor"):
        build("hps_v2", model=tmp_path / "head.safetensors", processor=clip_folder)


@pytest.mark.parametrize("source", ["nowhere", "/no/such/head.pth", "owner/repository"])
def test_a_source_that_cannot_be_is_named(source):
    with pytest.raises(UserError, match="neither a file nor owner/repository/file"):
        load_head(source)


def test_the_published_head_loads_where_it_is_at_hand():
    path = ROOT.parent / "shared" / "data" / "aesthetic_head.pth"
    if not path.is_file():
        pytest.skip("the published aesthetic head is not on this machine")
    head = load_head(str(path))
    assert sum(p.numel() for p in head.parameters()) == 927_969
    unit = F.normalize(torch.randn(64, 768, generator=torch.Generator().manual_seed(0)), dim=-1)
    scores = head(unit)
    assert 0 < scores.min() < scores.max() < 10  # a scale of 1 to 10, whatever it is shown


def attack(path):
    class Attack:
        def __reduce__(self):
            return Path.touch, (path,)

    return Attack()


@pytest.mark.parametrize("kind", ["inside", "whole", "plain pickle"])
def test_a_pickle_in_a_head_file_is_not_run(tmp_path, kind):
    import pickle

    harm, file = attack(tmp_path / "run"), tmp_path / "head.pth"
    if kind == "plain pickle":
        file.write_bytes(pickle.dumps(harm, protocol=2))
    else:
        torch.save({"layers.0.weight": harm} if kind == "inside" else harm, file)
    with pytest.raises(UserError, match="is not a file of plain tensors"):
        load_head(str(file))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_broken_head_file_is_named(tmp_path, content, suffix):
    file = tmp_path / f"head{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"aesthetic_score\.head=.*is not a file of plain tensors"):
        load_head(str(file))


def test_a_file_without_named_tensors_is_refused(tmp_path):
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(UserError, match="does not hold named tensors"):
        load_head(str(tmp_path / "list.pth"))


def test_every_reward_says_what_it_is():
    for entry in map(reward_entry, REWARDS):
        assert entry.unit
        assert entry.meaning
        assert entry.published
        assert all(part.licence or part == EMOJI_CLIP for part in entry.parts.values())


@pytest.mark.network
@pytest.mark.parametrize(
    "name", ["clip_score", "aesthetic_score", "pick_score", "hps_v2", "image_reward"]
)
def test_published_weights_prefer_a_picture_to_noise(name):
    """A drawn face against noise, for its own description."""
    from PIL import ImageDraw

    picture = Image.new("RGB", (224, 224), "skyblue")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((40, 40, 184, 184), fill="yellow", outline="black", width=3)
    draw.ellipse((80, 85, 100, 110), fill="black")
    draw.ellipse((124, 85, 144, 110), fill="black")
    draw.arc((75, 90, 149, 155), 20, 160, fill="black", width=5)
    face = torch.from_numpy(np.asarray(picture)).permute(2, 0, 1).float() / 255
    images = torch.stack([face, torch.rand_like(face)])
    reward = build(name)
    scores = reward(images, ["a drawing of a yellow smiling face"] * 2)
    assert scores[0] > scores[1]
