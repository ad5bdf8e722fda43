"""Gradients of rewards with respect to pictures, against finite differences."""

from __future__ import annotations

import logging

import pytest
import torch

from ddpo.devices import DTYPES
from ddpo.rewards import REWARDS, reward_entry
from ddpo.rewards.brightness import brightness
from ddpo.rewards.clip import clip_pixels
from ddpo.rewards.gradients import RewardGradients, fit
from ddpo.rewards.image_batch import ImageBatch
from ddpo.rewards.jpeg_bits import jpeg_bits
from ddpo.rewards.jpeg_compressibility import JpegSize
from tests.support.clip import make_clip
from tests.support.rewards import build
from tests.support.rig import make_settings

FORMULAS = ("colorfulness", "sharpness", "rms_contrast", "brightness")
COMPANIONS = ("jpeg_compressibility", "jpeg_incompressibility")
MODELS = ("clip_alignment", "clip_score", "pick_score", "aesthetic_score")


def pictures(rows=2, height=20, width=24, dtype=torch.float64, seed=0):
    """Smooth noise of 8-bit values, none at the ends of the range."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(rows, 3, height // 2, width // 2, generator=generator, dtype=torch.float64)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (fine.clamp(0.1, 0.9) * 255).round().div(255).to(dtype)


def directional(function, images, change, eps):
    """Central difference of a sum of scores along a change of the pictures."""
    ahead, behind = function(images + eps * change), function(images - eps * change)
    return (ahead.sum() - behind.sum()) / (2 * eps)


def test_every_reward_of_the_table_says_whether_it_has_a_gradient():
    for name in REWARDS:
        entry = reward_entry(name)
        assert entry.is_differentiable == (name not in COMPANIONS)
        assert (entry.companion is not None) == (name in COMPANIONS)


@pytest.mark.parametrize("name", [*FORMULAS, "jpeg_bits"])
@pytest.mark.parametrize("size", [(20, 24), (17, 31)])
def test_formulas_have_the_gradient_of_finite_differences(name, size):
    function = jpeg_bits if name == "jpeg_bits" else lambda x: build(name)(x, ["a"] * len(x))
    images = pictures(2, 34, 34)[:, :, : size[0], : size[1]].contiguous()
    gradients = RewardGradients({name: lambda batch, _: function(batch.images)})
    gradient, values = gradients.ascent(images, ["a", "b"], torch.ones(2, 1))
    assert gradient.dtype == torch.float64
    torch.testing.assert_close(values, function(images).to(values), rtol=1e-6, atol=1e-6)
    change = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).double()
    expected = directional(function, images, change, 1e-7)
    assert (gradient * change).sum().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.fixture(name="tower_sources", scope="module")
def _tower_sources(tmp_path_factory):
    from ddpo.rewards.aesthetic_score import make_head

    folder = tmp_path_factory.mktemp("clip")
    make_clip(folder)
    torch.manual_seed(0)
    head = make_head(8)
    torch.save(head.state_dict(), folder / "head.pth")
    parts = {"clip": folder, "model": folder, "processor": folder, "head": folder / "head.pth"}
    return {name: {part: parts[part] for part in reward_entry(name).parts} for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(20, 24), (64, 41)])
def test_models_have_the_gradient_of_finite_differences(name, size, tower_sources, monkeypatch):
    """Around the very pixels that the model sees; the resize is linear and has its own gradient."""
    monkeypatch.setitem(DTYPES, "float32", torch.float64)
    reward = build(name, **tower_sources[name])
    if name == "aesthetic_score":
        reward.head.double()
    images = pictures(2, *size)
    change = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).double()
    prompts = ["ab", "c"]
    gradients = RewardGradients({name: reward.score})
    gradient, values = gradients.ascent(images, prompts, torch.ones(2, 1))
    torch.testing.assert_close(values, reward(images, prompts).to(values), rtol=1e-5, atol=1e-5)

    plain = ImageBatch(images)
    plain_pixels = clip_pixels(plain, reward.clip.processor)
    leaf = images.clone().requires_grad_()
    smooth = clip_pixels(ImageBatch(leaf, keep_graph=True), reward.clip.processor)
    torch.testing.assert_close(smooth.detach().float(), plain_pixels)
    _, seen = torch.autograd.functional.jvp(
        lambda x: clip_pixels(ImageBatch(x, keep_graph=True), reward.clip.processor), images, change
    )

    class Shifted:
        """A batch whose pixels are moved as `change` moves the pictures."""

        keep_graph = False

        def __init__(self, eps):
            self.pixels, self.device = smooth.detach() + eps * seen, images.device

        def shared(self, key, compute):
            return self.pixels if key[0] == "clip pixels" else compute()

    ahead, behind = (reward.score(Shifted(eps), prompts).sum() for eps in (1e-6, -1e-6))
    expected = (ahead - behind) / 2e-6
    assert (gradient * change).sum().item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_resize_has_the_gradient_of_the_smooth_resize_to_a_small_error():
    """Pillow rounds between its two passes; the smooth filter is the same one."""
    processor = build("clip_alignment").clip.processor
    for height, width in ((32, 32), (64, 48), (300, 200)):
        images = pictures(1, height, width, torch.float32)
        leaf = images.clone().requires_grad_()
        seen = clip_pixels(ImageBatch(leaf, keep_graph=True), processor)
        seen.sum().backward()
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_in_half_precision_has_nearly_the_same_gradient(dtype, tower_sources):
    images, found = pictures(2, 64, 64, torch.float32), []
    for each in ("float32", dtype):
        settings = make_settings(rewards={"dtype": each}).rewards
        sources = {part: str(path) for part, path in tower_sources["clip_alignment"].items()}
        reward = reward_entry("clip_alignment").build(sources, torch.device("cpu"), settings.dtype)
        gradients = RewardGradients({"clip_alignment": reward.score})
        found.append(gradients.ascent(images, ["ab", "c"], torch.ones(2, 1))[0].flatten())
    assert torch.cosine_similarity(found[0], found[1], dim=0) > 0.98


def test_the_sum_has_the_directions_and_each_picture_its_own():
    images = pictures(3, dtype=torch.float32)
    names = {"brightness": brightness, "colorfulness": build("colorfulness")}
    gradients = RewardGradients(
        {name: lambda batch, texts, f=f: f(batch.images, texts) for name, f in names.items()}
        | {"black": None},
        batch_size=2,
    )
    directions = torch.tensor([[1.0, 0.0, 7.0], [0.0, 2.0, 7.0], [0.5, -1.0, 0.0]])
    gradient, values = gradients.ascent(images, ["a"] * 3, directions)
    alone = [
        gradients.ascent(images, ["a"] * 3, torch.eye(3)[k].expand(3, -1))[0] for k in range(3)
    ]
    assert not alone[2].any()
    expected = sum(directions[:, k, None, None, None] * alone[k] for k in range(3))
    torch.testing.assert_close(gradient, expected)
    scores = torch.stack([f(images, ["a"] * 3) for f in names.values()], dim=1)
    torch.testing.assert_close(values, (directions[:, :2] * scores).sum(dim=1))


def test_a_picture_without_a_score_leaves_the_others_as_they_are():
    images = pictures(2, dtype=torch.float32)
    broken = images.clone()
    broken[1, 0, 0, 0] = torch.nan
    gradients = RewardGradients(
        {"colorfulness": lambda batch, _: build("colorfulness")(batch.images, [])}
    )
    directions = torch.tensor([[1.0], [0.0]])
    expected, _ = gradients.ascent(images, ["a", "b"], directions)
    gradient, _ = gradients.ascent(broken, ["a", "b"], directions)
    assert torch.equal(gradient, expected)


def test_the_companion_follows_the_size_of_the_file_at_any_picture_size():
    for size in ((32, 32), (50, 70), (128, 96)):
        shades = torch.linspace(0.1, 1, 24, dtype=torch.float64)[:, None, None, None]
        images = 0.5 + (pictures(24, *size, seed=3) - 0.5) * shades
        sizes = JpegSize(1)(images, [""] * 24)
        _, correlation = fit(jpeg_bits(ImageBatch(images).images), sizes)
        assert correlation > 0.99


def a_taste(images, prompts):
    return images.mean(dim=(1, 2, 3)).sqrt()


def in_numpy(images, prompts):
    return torch.from_numpy(images.numpy().mean(axis=(1, 2, 3)))


def detached(images, prompts):
    return images.detach().mean(dim=(1, 2, 3))


def infinite(images, prompts):
    return (images - images.detach()).sum(dim=(1, 2, 3)).sqrt()


def stepwise(images, prompts):
    return (images > 0.5).float().mean(dim=(1, 2, 3)) + 0 * images.sum(dim=(1, 2, 3))


def test_a_function_of_the_user_is_tried_and_the_run_says_what_it_took(caplog):
    mine = (a_taste, in_numpy, detached, infinite, stepwise)
    names = tuple(f"{__name__}:{each.__name__}" for each in mine)
    settings = make_settings(
        rewards={"names": (*names, "brightness", *COMPANIONS)}, evolution={"num_agents": 8}
    ).rewards
    rewards = dict(
        zip(settings.objectives, (*mine, brightness, JpegSize(-1), JpegSize(1)), strict=True)
    )
    gradients = RewardGradients.build(settings, rewards, torch.device("cpu"))
    images = pictures(12, 32, 32, torch.float32) * torch.linspace(0.3, 1, 12)[:, None, None, None]
    scores = torch.stack([each(images, ["a"] * 12).float() for each in rewards.values()], dim=1)
    with caplog.at_level(logging.INFO):
        slopes = gradients.slopes(images, ["a"] * 12, scores)
    assert slopes[:6] == (1, 0, 0, 0, 0, 1)
    assert slopes[6] < 0 < slopes[7]
    assert slopes[6] == pytest.approx(-slopes[7])
    for name in ("in_numpy", "detached", "infinite", "stepwise"):
        assert f"{name} is a black box" in caplog.text
    for name in ("a_taste", "brightness"):
        assert f"{name}: its gradient is followed" in caplog.text


def test_a_companion_that_does_not_follow_is_not_followed(caplog):
    settings = make_settings(rewards={"names": ("brightness", "jpeg_compressibility")}).rewards
    rewards = {"brightness": brightness, "jpeg_compressibility": JpegSize(-1)}
    gradients = RewardGradients.build(settings, rewards, torch.device("cpu"))
    images = pictures(12, 32, 32, torch.float32)
    scores = torch.rand(12, 2, generator=torch.Generator().manual_seed(0))
    assert gradients.slopes(images, ["a"] * 12, scores) == (1, 0)
    assert "jpeg_compressibility is a black box" in caplog.text


def test_black_boxes_by_wish_and_remote_rewards_have_no_function():
    settings = make_settings(
        rewards={
            "names": ("brightness", "sharpness", "colorfulness"),
            "black_boxes": ("sharpness",),
            "remotes": ("colorfulness=http://127.0.0.1:1/",),
        },
        train={"update_rule": "reward_gradient", "updates_per_epoch": 1},
    ).rewards
    rewards = dict.fromkeys(settings.objectives, brightness)
    functions = RewardGradients.build(settings, rewards, torch.device("cpu")).functions
    assert [each is not None for each in functions.values()] == [True, False, False]
