"""Every setting, once, with its default: the embedded model, offline, in minutes on a laptop.

Override any of them as `--config.train.learning_rate=1e-3`, or write a recipe: a file beside this
one that imports `get_config` and changes a few keys. Types and limits of single settings
are in `config/settings/schema.py`, rules between them in `config/settings/rules.py`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Default settings: `clip_alignment` against `jpeg_compressibility` on the emoji model."""
    config = ml_collections.ConfigDict()

    config.seed = 0  # keys every random draw of the run
    config.logdir = "logs"  # where run directories are made
    config.run_name = ""  # name of the run directory; empty: date and time
    config.resume_from = ""  # a run directory to continue; "auto": the newest that is not finished
    config.resume_force = ()  # settings that may differ from those the run began with
    config.trackers = ()  # besides metrics.jsonl: "wandb", "tensorboard"
    config.num_threads = 0  # CPU threads of torch; 0: all cores
    # off: every layer in its plain form. layers: faster ones, the same up to rounding. fused: on a
    # GPU, norms and activations in fewer passes too (docs/scaling.md).
    config.speed = "layers"

    # --- processes: as many as torchrun or accelerate started ----------------------------------
    config.processes = processes = ml_collections.ConfigDict()
    processes.count = 0  # refuse to run as any other number of processes; 0: any
    processes.timeout_seconds = 600.0  # a process that keeps the others waiting longer ends the run

    # --- the frozen base model ---------------------------------------------------------------
    config.pretrained = pretrained = ml_collections.ConfigDict()
    # Hub id (owner/name@revision pins one), folder, .safetensors checkpoint, or "emoji-sd", which
    # ships with the project.
    pretrained.model = "emoji-sd"
    pretrained.revision = ""  # branch, tag or commit on the hub
    pretrained.variant = ""  # file variant on the hub, e.g. "fp16"
    # A .safetensors checkpoint has no configuration: folder or hub id of a model of the same kind.
    pretrained.single_file_config = ""  # empty: the hub model that diffusers infers
    # Of the frozen parts: float32, tf32 (float32 whose products a GPU rounds to 10 bits), bfloat16
    # or float16.
    pretrained.dtype = "float32"
    pretrained.height = 0  # of the pictures, in pixels; 0: the model's own
    pretrained.width = 0
    # What SDXL is told of its pictures: (height, width) of the original, (top, left) of the crop.
    pretrained.original_size = ()  # empty: the size drawn
    pretrained.crop_top_left = (0, 0)
    # One LoRA to merge into the model first: file, folder or hub id, owner/name/file@revision.
    pretrained.lora = ""
    pretrained.lora_file = ""  # which file of a folder or hub id that has several
    pretrained.lora_revision = ""  # branch, tag or commit on the hub
    pretrained.lora_scale = 1.0  # its strength
    pretrained.channels_last = False  # memory layout of the UNet; faster convolutions on some GPUs
    pretrained.tf32 = False  # on CUDA, float32 products of 10 bits: faster, see docs/scaling.md
    pretrained.compile = ""  # backend of torch.compile for the UNet, such as "inductor"
    pretrained.vae_slicing = False  # decode one picture at a time: less memory, slower
    pretrained.vae_tiling = False  # decode large pictures in overlapping tiles; not exact
    pretrained.offload_text_encoders = False  # to the CPU, once all prompts are encoded

    # --- agents ----------------------------------------------------------------------------------
    # population: every agent has an adapter of its own. conditioned: all are members of one family,
    # trained along weights drawn anew in every iteration and archived at even weights; it has
    # fixed tasks: evolution.strategy=fixed_weights, evolution.start=even_weights (docs/front.md).
    config.agents = agents = ml_collections.ConfigDict()
    agents.kind = "population"  # population or conditioned

    # --- one LoRA adapter per agent ------------------------------------------------------------
    config.adapter = adapter = ml_collections.ConfigDict()
    adapter.rank = 4  # of each of the M + 1 parts of a conditioned adapter
    adapter.alpha = 4.0  # strength of the update is alpha / rank
    adapter.target_modules = ("to_q", "to_k", "to_v", "to_out.0")  # attention projections
    adapter.seed = 0  # draws the initial A, which all agents share

    # --- objectives --------------------------------------------------------------------------
    # z = (return - reference) / (ideal - reference) is the scale of all trade-offs. Leave both
    # empty to measure them on the base model before training: its mean return minus and plus 3
    # standard deviations within a prompt. `mo_train.py --calibrate` prints them as recipe lines.
    config.rewards = rewards = ml_collections.ConfigDict()
    # Two or more of docs/rewards.md, or functions of your own as module:function or
    # path/to/file.py:function.
    rewards.names = ("clip_alignment", "jpeg_compressibility")
    # Rewards behind a server, as "name=http://host:port/path"; rewards.names uses the name.
    rewards.remotes = ()
    rewards.reference = ()  # one number an objective, raw units
    rewards.ideal = ()
    rewards.scales = ()  # what rewards are divided by before they are weighted; empty: measured
    # Where rewards and guards get their models instead of the default, as "REWARD.PART=SOURCE": a
    # hub id, a folder or a file. docs/rewards.md lists the parts and their defaults.
    rewards.sources = ()
    # What rewards are built from: hub ids or folders; heads and weights of one file are local
    # or owner/repository/file of the hub.
    rewards.clip_model = "emoji-clip"  # for clip_alignment; "emoji-clip" ships with the project
    rewards.clip_score_model = "openai/clip-vit-large-patch14"
    rewards.aesthetic_clip = "openai/clip-vit-large-patch14"
    rewards.aesthetic_head = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"
    rewards.pick_model = "yuvalkirstain/PickScore_v1"
    rewards.pick_processor = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # tokenizer and picture size
    rewards.hps_weights = "xswu/HPSv2/HPS_v2.1_compressed.pt"
    rewards.hps_clip = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # its configuration and processor
    rewards.image_reward_weights = "THUDM/ImageReward/ImageReward.pt"
    rewards.image_reward_tokenizer = "google-bert/bert-base-uncased"
    rewards.dtype = "float32"  # of the reward models: float32, bfloat16 or float16
    rewards.device = ""  # where rewards run, e.g. "cpu" or "cuda:1"; empty: beside the base model
    rewards.batch_size = 64  # images per call of a reward
    rewards.timeout_seconds = 600.0  # a call that takes longer hangs
    rewards.on_error = "abort"  # when a reward raises or hangs: abort, or skip those images
    # NaN and infinite scores are masked. The run ends when a larger share of a rollout's or an
    # evaluation's images has no score.
    rewards.max_invalid_fraction = 0.1
    rewards.remote_encoding = "png"  # how pictures travel: png, which loses nothing, or jpeg
    rewards.remote_attempt_seconds = 60.0  # for one request; rewards.timeout_seconds for all
    rewards.remote_retries = 4  # further attempts after a failure that may pass

    # --- guards: what over-optimisation shows in, measured at evaluation and never trained on ----
    config.guards = guards = ml_collections.ConfigDict()
    guards.names = ()  # rewards, "base_similarity", "diversity" (docs/guards.md)
    # How far below the base model's value each may fall, in its own unit; a policy that has lost
    # more is neither archived nor picked as a parent (but an agent of the warm-up or of
    # fixed_weights goes on from its own last policy). Empty: guards are shown only.
    guards.max_losses = ()
    guards.clip_model = "emoji-clip"  # embeds pictures for base_similarity and diversity

    # --- prompts: a set that ships with the project, or a file of prompts (docs/prompts.md) ------
    # Roles that name the same set get disjoint parts of it, if it has at least 64 prompts.
    config.prompts = prompts = ml_collections.ConfigDict()
    prompts.train = "emoji_animals"
    prompts.selection = ""  # what the search judges policies by; empty: as train
    prompts.report = "emoji_report"  # the published front is measured on these; empty: as train

    # --- sampling ------------------------------------------------------------------------------
    config.sample = sample = ml_collections.ConfigDict()
    sample.num_steps = 6  # denoising steps of the pictures to learn from
    sample.guidance_scale = 1.0  # classifier-free guidance; 1 is none, at half the cost
    sample.eta = 1.0  # 1: the variance of DDPM; must be positive, or there is no policy
    # Only so many consecutive steps are drawn with noise, and trained; all others are deterministic
    # (DDIM with eta = 0). Where they lie is drawn anew for every iteration. 0: noise in all steps.
    sample.noisy_steps = 0
    sample.negative_prompt = ""
    sample.prompts_per_iteration = 12  # by each agent; all come once before one comes again
    sample.images_per_prompt = 4  # of each
    sample.rows_per_pass = 128  # UNet rows per pass, all agents together
    sample.offload_rollouts = False  # keep latents and pictures to learn from on the host

    # --- DDPO's update ---------------------------------------------------------------------------
    config.train = train = ml_collections.ConfigDict()
    # ddpo: clipped policy gradient on the steps that were sampled. diffusion_nft and awm: noise the
    # finished image again and learn from how it is denoised; a UNet row a step, without guidance.
    train.update_rule = "ddpo"  # ddpo, diffusion_nft or awm
    train.nft_strength = 1.0  # beta of diffusion_nft; the smaller, the larger the step asked for
    train.learning_rate = 5e-3
    train.adam_beta1 = 0.9
    train.adam_beta2 = 0.999
    train.adam_epsilon = 1e-8
    train.weight_decay = 0.0
    train.max_grad_norm = 1.0  # per agent
    train.num_inner_epochs = 1  # passes over a rollout
    train.updates_per_epoch = 4  # optimiser steps per pass
    train.clip_nats = 1.64  # gate on a step's true log-ratio: DDPO's 1e-4 at 4x64x64 latents
    # Weight of the KL divergence from the base model in the loss (DPOK): keeps policies near it. 0
    # is none; above, every training pass needs a second one without gradient.
    train.kl_coef = 0.0
    # Share of an agent's images that is trained: those with the most extreme advantages, half of
    # them the best and half the worst. All are drawn and scored.
    train.best_of = 1.0
    train.timestep_fraction = 1.0  # share of the steps trained, drawn anew for each sample
    # Steps left untrained at the end. There x_{t-1} follows from x_t almost surely: of 10 steps the
    # last but one has a log-probability 8 times as sensitive to the prediction as the others, and
    # its noise drowns their gradient.
    train.skip_last_steps = 2
    # equal: every trained step counts the same. sensitivity: the less, the more sensitive its
    # log-probability is to the prediction; then no step needs to be skipped.
    train.step_weighting = "equal"  # equal or sensitivity
    train.rows_per_pass = 128  # UNet rows per pass with gradient; lower it to save memory
    # Take gradients while sampling, a sample at a time, instead of passing every step once more.
    # The same up to rounding, for ddpo with one optimiser step an iteration. Every sample costs the
    # memory of an adapter; train.rows_per_pass holds for sampling too (docs/cheaper_passes.md).
    train.single_pass = False
    # Old log-probabilities are those of sampling (never), computed again in training's own passes
    # (always), or the latter once the ratio before the first update is too far off 1 (auto).
    train.recompute_log_probs = "auto"
    train.gradient_checkpointing = False  # less memory, about a third slower
    train.max_skipped_steps = 10  # steps in a row an agent may skip: gradient not finite

    # --- advantages ----------------------------------------------------------------------------
    config.advantage = advantage = ml_collections.ConfigDict()
    # frozen: rewards are divided by their spread under the base model. per_prompt: by the prompt's
    # own running spread (GDPO). raw: they are weighted first, whatever their units.
    advantage.normalisation = "frozen"
    advantage.buffer_size = 16  # reward vectors remembered per prompt
    advantage.min_count = 4  # below this, the whole batch's mean stands in for the prompt's
    advantage.max_advantage = 5.0  # advantages are clipped to +- this

    # --- evaluation: same prompts and same noise for every policy ------------------------------
    config.evaluation = evaluation = ml_collections.ConfigDict()
    # Denoising steps of all pictures that policies are judged by, and of whatever is drawn from a
    # finished front; 0: sample.num_steps. So training may draw with fewer.
    evaluation.num_steps = 10
    evaluation.calibration_prompts = 64  # at most; the base model draws 4 pictures of each
    evaluation.selection_images = 96  # per policy and generation; decides the search
    evaluation.report_images = 512  # per policy of the final front; what is published
    evaluation.sample_prompts = 8  # columns of samples.png

    # --- checkpoints: one after every generation, see docs/reliability.md -----------------------
    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.keep = 2  # the last ones stay
    checkpoint.max_failures = 3  # generations in a row that a full disk may leave unsaved

    # --- PGMORL --------------------------------------------------------------------------------
    config.evolution = evolution = ml_collections.ConfigDict()
    evolution.num_agents = 4  # policies trained at a time
    # even_weights: the warm-up trains all agents along even weights. soup: it trains one agent per
    # objective, and all others then start as blends of these, evenly between them.
    evolution.start = "soup"
    # prediction_guided: PGMORL's. fixed_weights: every agent goes on along its own weights. moead:
    # along each even weight goes the policy that is best there. random: any policy, any weights.
    evolution.strategy = "prediction_guided"
    # scale_free: fits the nearest records in z. authors: PGMORL's own neighbourhoods and fit.
    evolution.predictor = "scale_free"
    evolution.warmup_generations = 2  # agents keep the weights they start with
    evolution.evolutionary_generations = 8  # the prediction model chooses policies and weights
    evolution.iterations_per_generation = 6  # sample, then update
    evolution.num_weight_candidates = 7  # weights tried per policy
    evolution.sparsity_coef = 0.1  # how much an even front counts against hypervolume
    evolution.num_directions = 20  # of the performance buffer
    evolution.slots_per_direction = 2  # policies kept along each
    evolution.num_neighbours = 12  # records the prediction model is fitted to

    return config
