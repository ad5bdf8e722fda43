"""The rewards: what an image is worth for one objective. Adding one is a file and an entry here.

A reward is built once by its factory and then called from a worker thread:

    reward = REWARDS["jpeg_compressibility"].build(settings, device)
    scores = reward(images, prompts)   # (rows, 3, H, W) in [0, 1], one prompt per row -> (rows,)

Factories import what they need themselves, so that listing the table costs nothing. Rewards that
are not in the table, a user's own and remote ones, are found by `ddpo/rewards/lookup.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from config.settings.schema import RewardSettings


class Reward(Protocol):
    """Scores a batch of images; larger is better."""

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores (rows,) of images (rows, 3, H, W) in [0, 1], one prompt per row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardEntry:
    """A row of the table.

    Attributes:
        unit: what one unit of the score is.
        measures: one sentence on what a large score means.
        source: where the measure was published.
        weights: what is downloaded and its licence; empty for a formula.
        build: makes the reward from its settings, on a device.
    """

    unit: str
    measures: str = ""
    source: str = ""
    weights: str = ""
    build: Callable[[RewardSettings, torch.device], Reward]


def _jpeg_compressibility(settings: RewardSettings, device: torch.device) -> Reward:  # noqa: ARG001
    from ddpo.rewards.jpeg import JpegSize  # noqa: PLC0415

    return JpegSize(sign=-1)


def _jpeg_incompressibility(settings: RewardSettings, device: torch.device) -> Reward:  # noqa: ARG001
    from ddpo.rewards.jpeg import JpegSize  # noqa: PLC0415

    return JpegSize(sign=1)


def _colorfulness(settings: RewardSettings, device: torch.device) -> Reward:  # noqa: ARG001
    from ddpo.rewards.colorfulness import colorfulness  # noqa: PLC0415

    return colorfulness


def _sharpness(settings: RewardSettings, device: torch.device) -> Reward:  # noqa: ARG001
    from ddpo.rewards.sharpness import sharpness  # noqa: PLC0415

    return sharpness


def _rms_contrast(settings: RewardSettings, device: torch.device) -> Reward:  # noqa: ARG001
    from ddpo.rewards.rms_contrast import rms_contrast  # noqa: PLC0415

    return rms_contrast


def _brightness(settings: RewardSettings, device: torch.device) -> Reward:  # noqa: ARG001
    from ddpo.rewards.brightness import brightness  # noqa: PLC0415

    return brightness


def _clip_alignment(settings: RewardSettings, device: torch.device) -> Reward:
    from ddpo.rewards.clip import load_clip  # noqa: PLC0415
    from ddpo.rewards.clip_alignment import ClipAlignment  # noqa: PLC0415

    return ClipAlignment(load_clip(settings.clip_model, device, settings.dtype))


def _clip_score(settings: RewardSettings, device: torch.device) -> Reward:
    from ddpo.rewards.clip import load_clip  # noqa: PLC0415
    from ddpo.rewards.clip_score import ClipScore  # noqa: PLC0415

    return ClipScore(load_clip(settings.clip_score_model, device, settings.dtype))


def _aesthetic_score(settings: RewardSettings, device: torch.device) -> Reward:
    from ddpo.rewards.aesthetic_score import AestheticScore, load_head  # noqa: PLC0415
    from ddpo.rewards.clip import load_clip  # noqa: PLC0415

    head = load_head(settings.aesthetic_head)
    return AestheticScore(load_clip(settings.aesthetic_clip, device, settings.dtype), head)


def _pick_score(settings: RewardSettings, device: torch.device) -> Reward:
    from ddpo.rewards.clip import load_clip  # noqa: PLC0415
    from ddpo.rewards.pick_score import PickScore  # noqa: PLC0415

    return PickScore(
        load_clip(settings.pick_model, device, settings.dtype, settings.pick_processor)
    )


def _hps_v2(settings: RewardSettings, device: torch.device) -> Reward:
    from ddpo.rewards.hps_v2 import HpsV2  # noqa: PLC0415

    return HpsV2(settings.hps_weights, settings.hps_clip, device, settings.dtype)


def _image_reward(settings: RewardSettings, device: torch.device) -> Reward:
    from ddpo.rewards.image_reward import ImageReward  # noqa: PLC0415

    weights, tokenizer = settings.image_reward_weights, settings.image_reward_tokenizer
    return ImageReward(weights, tokenizer, device, settings.dtype)


# Guards that are no rewards, because they compare pictures: see `ddpo/rewards/guards.py`.
PICTURE_GUARDS = {
    "base_similarity": "cosine of CLIP embeddings with the base model's picture of the same noise",
    "diversity": "mean 1 - cosine of CLIP embeddings between the pictures of a prompt",
}

REWARDS: dict[str, RewardEntry] = {
    "clip_alignment": RewardEntry(
        unit="cosine",
        measures="does the picture show its prompt: cosine of CLIP embeddings",
        source="Radford et al. 2021",
        weights="`rewards.clip_model`; by default emoji-clip, which ships with the project",
        build=_clip_alignment,
    ),
    "clip_score": RewardEntry(
        unit="100 x cosine",
        measures="does the picture show its prompt: CLIPScore, 100 max(cos, 0)",
        source="Hessel et al. 2021, eq. 1, with the weight 100",
        weights="CLIP ViT-L/14 (MIT)",
        build=_clip_score,
    ),
    "pick_score": RewardEntry(
        unit="logit",
        measures="which picture do people pick for this prompt: PickScore",
        source="Kirstain et al. 2023, eq. 2",
        weights="`yuvalkirstain/PickScore_v1` (MIT)",
        build=_pick_score,
    ),
    "hps_v2": RewardEntry(
        unit="100 x cosine",
        measures="which picture do people prefer for this prompt: HPS v2.1",
        source="Wu et al. 2023",
        weights="`xswu/HPSv2` (Apache 2.0)",
        build=_hps_v2,
    ),
    "image_reward": RewardEntry(
        unit="standard score",
        measures="which picture do annotators rank higher for this prompt: ImageReward",
        source="Xu et al. 2023",
        weights="`THUDM/ImageReward` (Apache 2.0), tokenizer of bert-base-uncased (Apache 2.0)",
        build=_image_reward,
    ),
    "aesthetic_score": RewardEntry(
        unit="LAION 1-10",
        measures="do people find it beautiful: LAION's improved aesthetic predictor",
        source="Schuhmann 2022; DDPO 5.2 (Black et al. 2024)",
        weights="CLIP ViT-L/14 (MIT) and a head (Apache 2.0)",
        build=_aesthetic_score,
    ),
    "jpeg_compressibility": RewardEntry(
        unit="-kB",
        measures="small files: negated size as JPEG of quality 95",
        source="DDPO 5.1 (Black et al. 2024)",
        build=_jpeg_compressibility,
    ),
    "jpeg_incompressibility": RewardEntry(
        unit="kB",
        measures="large files: size as JPEG of quality 95",
        source="DDPO 5.1 (Black et al. 2024)",
        build=_jpeg_incompressibility,
    ),
    "colorfulness": RewardEntry(
        unit="Hasler-Suesstrunk M",
        measures="strong, varied colours",
        source="Hasler and Suesstrunk 2003, M(3)",
        build=_colorfulness,
    ),
    "sharpness": RewardEntry(
        unit="grey value^2",
        measures="sharp edges (and noise): variance of the Laplacian",
        source="Pech-Pacheco et al. 2000, LAPV",
        build=_sharpness,
    ),
    "rms_contrast": RewardEntry(
        unit="grey value / 255",
        measures="light beside dark: standard deviation of the grey values",
        source="Peli 1990, root mean square contrast",
        build=_rms_contrast,
    ),
    "brightness": RewardEntry(
        unit="relative luminance",
        measures="much light: mean relative luminance",
        source="ITU-R Rec. 709, IEC 61966-2-1",
        build=_brightness,
    ),
}


def markdown_table() -> str:
    """The table of rewards as docs/rewards.md shows it."""
    rows = [
        f"| `{name}` | {entry.unit} | {entry.measures} | {entry.source} | {entry.weights or '-'} |"
        for name, entry in REWARDS.items()
    ]
    return "\n".join(
        ["| Name | Unit | A large score means | Source | Weights |", "| --- " * 5 + "|", *rows]
    )
