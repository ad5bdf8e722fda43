"""Beautiful against small at 1024 pixels, Stable Diffusion XL base: four agents.

Trade-off: as in `config/aesthetic_compressibility.py`, from a base model that is more beautiful
already and whose files are several times larger.

Objectives: z = 0 and z = 1 are measured when the run starts, see `mo_train.py --calibrate`.

DDPO has no SDXL numbers. Settings that carry over are kept: 1.64 nats per step, guidance 5,
learning rate 3e-4. A row costs 8 times as much as in SD 1.5, so there are 64 images per iteration,
of 30 steps. Half of the steps are trained, drawn again for each sample. The VAE runs in float32,
one picture at a time; the text encoders leave the device once the prompts are encoded. One card of
24 GB, or several with `--num_processes`.
"""

import ml_collections

from config import aesthetic_compressibility


def get_config() -> ml_collections.ConfigDict:
    """`aesthetic_score` against `jpeg_compressibility` on SDXL, on one card of 24 GB."""
    config = aesthetic_compressibility.get_config()
    config.pretrained.model = "stabilityai/stable-diffusion-xl-base-1.0"
    config.pretrained.offload_text_encoders = True
    config.sample.num_steps = 30
    config.sample.prompts_per_iteration = 16
    config.sample.images_per_prompt = 4
    config.sample.rows_per_pass = 32
    config.train.rows_per_pass = 16
    config.train.timestep_fraction = 0.5
    config.advantage.min_count = 4
    config.evaluation.selection_images = 90  # 2 of each prompt
    config.evaluation.report_images = 128  # 8 of each
    config.evolution.num_agents = 4
    config.evolution.warmup_generations = 4
    config.evolution.evolutionary_generations = 4
    config.evolution.iterations_per_generation = 8
    return config
