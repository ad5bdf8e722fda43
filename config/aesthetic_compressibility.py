"""Beautiful against small, Stable Diffusion 1.5: six agents with DDPO's hyperparameters.

Trade-off: the aesthetic predictor rewards painterly detail and texture, which cost bytes; towards
small files, subjects fade into flat grounds. Where the predictor is over-optimised, pictures of all
prompts grow alike: `diversity` and `clip_score` are measured beside the front.

Objectives: z = 0 and z = 1 are measured when the run starts, the base model's mean -+ 3 standard
deviations within a prompt. Run `mo_train.py --calibrate` to see them beforehand.

From DDPO (Black et al. 2024, appendix; its LoRA form in kvablack/ddpo-pytorch): 256 images per
iteration, 50 steps all of which are trained, guidance 5, 4 updates, learning rate 3e-4, weight
decay 1e-4, clip range 1e-4, rank 4, 16 rewards remembered per prompt, the 45 animals. A lineage has
100 iterations, as many as its JPEG experiments.

Several cards: launch with `--num_processes 8`; numbers are per iteration, never per device. More
memory: raise `train.rows_per_pass`. Costs: docs/recipes.md.
"""

import ml_collections

from config import ddpo

CLIP = "openai/clip-vit-large-patch14"  # the aesthetic predictor's own: loaded once for all


def get_config() -> ml_collections.ConfigDict:
    """`aesthetic_score` against `jpeg_compressibility`, on one card of 24 GB."""
    config = ddpo.get_config()
    config.pretrained.model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    config.pretrained.dtype = "bfloat16"
    config.speed = "fused"

    config.rewards.names = ("aesthetic_score", "jpeg_compressibility")
    config.guards.names = ("clip_score", "base_similarity", "diversity")
    config.rewards.sources = (f"base_similarity.clip={CLIP}", f"diversity.clip={CLIP}")
    config.prompts.train = "simple_animals"
    config.prompts.report = "other_animals"

    config.sample.num_steps = 50
    config.sample.guidance_scale = 5.0
    config.sample.prompts_per_iteration = 32
    config.sample.images_per_prompt = 8
    config.sample.rows_per_pass = 96
    config.sample.offload_rollouts = True

    config.train.learning_rate = 3e-4
    config.train.weight_decay = 1e-4
    config.train.max_sensitivity = 0.0
    config.train.rows_per_pass = 48
    config.train.gradient_checkpointing = True
    config.advantage.min_count = 16

    config.evaluation.num_steps = 0
    config.evaluation.selection_images = 180  # 4 of each prompt
    config.evaluation.report_images = 512  # 32 of each
    config.evolution.num_agents = 6
    config.evolution.start = "even_weights"
    config.evolution.warmup_generations = 4
    config.evolution.evolutionary_generations = 6
    config.evolution.iterations_per_generation = 10
    return config
