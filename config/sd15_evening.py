"""Shows its prompt against beautiful, Stable Diffusion 1.5, in an evening.

Towards PickScore: every thing and word of the prompt, bright, sharp, centred. Towards the aesthetic
predictor: soft painterly light over fewer things, which may leave the prompt. Both grow at first.

Over-optimised first: the predictor, as one glossy style for all prompts (`diversity` falls); then
PickScore, as oversharp edges and too much contrast. `image_reward`, which nothing is trained on,
falls where that happens: choose a policy from before.

Your own checkpoint: `--config.pretrained.model=my.safetensors`. Small files instead:
`--config.rewards.names=aesthetic_score,jpeg_compressibility`. One card of 24 GB; docs/recipes.md
says what a card of 12 GB needs.

The gradient of the rewards is followed through the last of 20 steps (DRaFT-1, Clark et al. 2024)
with AlignProp's learning rate (Prabhudesai et al. 2023, their file for HPS and aesthetics).
"""

import ml_collections

from config import base

CLIP = "openai/clip-vit-large-patch14"  # the aesthetic predictor's own: loaded once for all


def get_config() -> ml_collections.ConfigDict:
    """`pick_score` against `aesthetic_score`, on one card of 24 GB."""
    config = base.get_config()
    config.pretrained.model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    config.pretrained.dtype = "bfloat16"
    config.speed = "fused"
    config.pretrained.offload_text_encoders = True

    config.rewards.names = ("pick_score", "aesthetic_score")
    config.rewards.batch_size = 8
    config.guards.names = ("image_reward", "base_similarity", "diversity")
    config.rewards.sources = (f"base_similarity.clip={CLIP}", f"diversity.clip={CLIP}")
    config.prompts.train = "varied"
    config.prompts.report = ""  # a part of the same set

    config.sample.num_steps = 20
    config.sample.guidance_scale = 5.0
    config.sample.prompts_per_iteration = 16
    config.sample.rows_per_pass = 80
    config.sample.offload_rollouts = True

    config.train.gradient_steps = 1
    config.train.learning_rate = 1e-3
    config.train.rows_per_pass = 20
    config.train.gradient_checkpointing = True

    config.evaluation.num_steps = 0
    config.evaluation.selection_images = 52  # 2 of each prompt
    config.evaluation.report_images = 104  # 4 of each
    config.evolution.iterations_per_generation = 12
    return config
