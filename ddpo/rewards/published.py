"""Published models that rewards are built from, as the dry run counts them: without their files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """The cost of a model; FLOPs are per picture and count a multiply-add as two.

    Attributes:
        parameters: number of them, for text and pictures together.
        file_bytes: of the file that is downloaded.
        score_flops: of scoring.
        ascent_flops: of scoring, and taking the gradient back to the picture.
        score_entries: numbers alive at the peak of scoring, beside the parameters.
        ascent_entries: the same for scoring and the gradient.
    """

    parameters: int
    file_bytes: float
    score_flops: float
    ascent_flops: float
    score_entries: float
    ascent_entries: float


# Sizes: Radford et al. 2021, table 20, and the configurations of openai/clip-vit-large-patch14 and
# laion/CLIP-ViT-H-14-laion2B-s32B-b79K. All else is measured on these configurations, in the same
# way as for base models (`ddpo.cost.footprint.Meter`). tests/ddpo/cost/test_rewards.py measures it
# again.
CLIP_L_14 = PublishedModel(
    parameters=427_616_513,
    file_bytes=1.71e9,  # float32
    score_flops=162e9,
    ascent_flops=334e9,
    score_entries=4.2e6,
    ascent_entries=92e6,
)
PICK_SCORE = PublishedModel(  # a CLIP ViT-H/14
    parameters=986_109_441,
    file_bytes=3.94e9,  # float32
    score_flops=335e9,
    ascent_flops=685e9,
    score_entries=4.0e6,
    ascent_entries=109e6,
)
HPS_V2 = dataclasses.replace(PICK_SCORE, file_bytes=1.97e9)  # the same in half precision
# BLIP ViT-L/16 and a BERT-base that attends to it (Xu et al. 2023), with 35 tokens.
IMAGE_REWARD = PublishedModel(
    parameters=446_206_689,
    file_bytes=1.79e9,  # float32
    score_flops=138e9,
    ascent_flops=279e9,
    score_entries=3.1e6,
    ascent_entries=67e6,
)
