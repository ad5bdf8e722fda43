"""Any image classifier of transformers as a reward, against transformers' own pipeline."""

from __future__ import annotations

import math

import pytest
import torch

from config.settings.errors import ConfigError, UserError
from ddpo.rewards import known_entry
from ddpo.rewards.gradients import RewardGradients
from ddpo.rewards.image_batch import ImageBatch
from ddpo.rewards.lookup import build_reward
from run.command_line import read_settings
from tests.support.rig import make_settings

CPU = torch.device("cpu")
LABELS = ["lynx", "tabby, tabby cat", "crane", "crane"]


def make_classifier(folder, labels=LABELS, processor=None, **changes):
    """A tiny random ViT, and a processor that resizes, crops and normalises as configured."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(3)
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        **changes,
    )
    model = ViTForImageClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    size = {"height": 28, "width": 28}
    (processor or ViTImageProcessorPil(size=size)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", name="vit")
def _vit(tmp_path_factory):
    return make_classifier(tmp_path_factory.mktemp("vit"))


def odds(folder, label):
    return build_reward(f"classifier:{folder}#{label}", make_settings().rewards, CPU)[0]


def pictures(rows=3, height=40, width=34):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(rows, 3, height // 4, width // 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return images.mul(255).round().div(255)


def probabilities(folder, images, label):
    """The answer of transformers' pipeline for the same pictures from Pillow."""
    from transformers import pipeline

    judge = pipeline("image-classification", model=str(folder), device="cpu")
    answers = [judge(picture, top_k=10) for picture in ImageBatch(images).pil]
    return [sum(a["score"] for a in answer if a["label"] == label) for answer in answers]


@pytest.mark.parametrize("label", ["lynx", "tabby", "crane"])  # "crane" twice, as in ImageNet
def test_the_score_is_the_log_odds_of_what_the_pipeline_says(vit, label):
    images = pictures()
    name = next(each for each in LABELS if label in each)
    expected = [math.log(p / (1 - p)) for p in probabilities(vit, images, name)]
    scores = odds(vit, label)(images, ["a"] * len(images))
    assert scores.tolist() == pytest.approx(expected, abs=1e-3)
    assert scores.std() > 1e-3


def test_labels_that_do_not_exclude_each_other_have_their_own_odds(tmp_path):
    folder = make_classifier(tmp_path, problem_type="multi_label_classification")
    images = pictures()
    expected = [math.log(p / (1 - p)) for p in probabilities(folder, images, "lynx")]
    assert odds(folder, "lynx")(images, []).tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("size", [(40, 34), (20, 24)])
@pytest.mark.parametrize("is_cropped", [False, True])
def test_the_gradient_follows_the_score(tmp_path, size, is_cropped):
    from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

    edge, crop = {"shortest_edge": 32}, {"height": 28, "width": 28}
    cropping = CLIPImageProcessorPil(size=edge, crop_size=crop)
    folder = make_classifier(
        tmp_path, processor=cropping if is_cropped else ViTImageProcessorPil(size=crop)
    )
    reward, images = odds(folder, "lynx"), pictures(2, *size).clamp(0.1, 0.9)
    gradients = RewardGradients({"lynx": reward.score})
    gradient, values = gradients.ascent(images, ["a", "b"], torch.ones(2, 1))
    torch.testing.assert_close(values, reward(images, []), atol=1e-4, rtol=1e-4)
    # A step of several grey values: what the model sees is rounded to 8 bits.
    change = 0.01 * gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    gain = reward(images + change, []) - reward(images - change, [])
    expected = 2 * (gradient * change).sum(dim=(1, 2, 3))
    torch.testing.assert_close(gain, expected, rtol=0.2, atol=1e-3)


def test_a_processor_that_cannot_be_followed_leaves_a_black_box(tmp_path, caplog):
    from transformers import ConvNextImageProcessorPil

    # It resizes to more than it is asked for, and crops that.
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 28}, crop_pct=0.875)
    reward, images = odds(make_classifier(tmp_path, processor=processor), "lynx"), pictures()
    gradients = RewardGradients({"lynx": reward.score})
    with caplog.at_level("INFO"):
        assert gradients.slopes(images, ["a"] * 3, reward(images, [])[:, None]) == (0,)
    assert "has no gradient here" in caplog.text


def test_labels_of_one_model_share_it_and_its_pictures(vit, monkeypatch):
    first, second = odds(vit, "lynx"), odds(vit, "crane")
    assert first._network is second._network
    batch, calls = ImageBatch(pictures()), []
    processor = first._network._processor
    monkeypatch.setattr(
        first._network, "_processor", lambda **kw: calls.append(kw) or processor(**kw)
    )
    first.score(batch, [])
    second.score(batch, [])
    assert len(calls) == 1


def test_it_is_one_objective_among_others_under_its_own_name(vit):
    names = f"classifier:{vit}#tabby,brightness"
    settings = read_settings([f"--config.rewards.names={names}"])
    assert settings.rewards.objectives == (f"{vit.name}_tabby", "brightness")
    assert known_entry(settings.rewards.names[0]).is_differentiable


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("classifier:{vit}#taby", "does not have: 'taby' is not one of its 3 labels: 'tabby'"),
        ("classifier:{vit}", "must look like classifier:FOLDER#LABEL"),
        ("classifier:#lynx", "must look like classifier:FOLDER#LABEL"),
        ("classifier:./nowhere#lynx", "names a folder that does not exist: ./nowhere"),
        ("classifier:tests#lynx", "names a folder without config.json"),
    ],
)
def test_a_mistake_is_met_before_any_model_loads(vit, name, message):
    with pytest.raises(ConfigError) as error:
        read_settings([f"--config.rewards.names={name.format(vit=vit)},brightness"])
    assert message in str(error.value)
    assert len(error.value.problems) == 1


def test_a_label_that_only_the_model_knows_is_met_when_it_loads(vit):
    with pytest.raises(UserError, match="'bear' is not one of its 3 labels"):
        build_reward(f"classifier:{vit}#bear", make_settings().rewards, CPU)
