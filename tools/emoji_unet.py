"""The denoiser of the embedded model, trained together with its text encoder on fixed latents."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from tools.emoji_bank import LATENT_CHANNELS
from tools.emoji_names import GROUNDS
from tools.emoji_text import (
    GROUND_TEMPLATES,
    TEMPLATES,
    WIDTH,
    build_text_encoder,
    ground_table,
    prompt_table,
    tokenize,
)
from tools.emoji_training import Course, TrainingRun, channels_last

EMPTY_FRACTION = 0.1  # captions left out, for classifier-free guidance
GROUND_FRACTION = 0.6  # captions that mention the ground, where it has a name
SNR_LIMIT = 5.0
KEPT_STEPS = (1000, 2000, 4000)  # unfinished models, shown to the judge of beauty


def build_unet() -> UNet2DConditionModel:
    """Returns an untrained denoiser (4.0 M parameters)."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        cross_attention_dim=WIDTH,
        block_out_channels=(64, 128),
        layers_per_block=1,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Returns a DDIM scheduler: Stable Diffusion's noise levels, velocity prediction as in 2.1."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def velocity_weight(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Returns min(1, 5 / (SNR + 1)), the weight of a squared velocity error.

    Uniform weights count the picture's error SNR + 1 times (Salimans and Ho 2022); the limit keeps
    the last, nearly clean steps from dominating (Hang et al. 2023).

    Example:
        >>> velocity_weight(torch.tensor([0.5, 0.875])).tolist()
        [1.0, 0.625]
    """
    return (SNR_LIMIT * (1 - alphas_cumprod)).clamp(max=1)


class Captions:
    """Draws phrases for captions and grounds.

    Args:
        tokenizer: From `emoji_text.build_tokenizer`.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._bare, self._on = prompt_table(tokenizer), ground_table(tokenizer)
        self._empty = tokenize(tokenizer, [""])

    def draw(
        self, captions: torch.Tensor, grounds: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Returns token ids (rows, length); in some rows, of the empty caption."""

        def uniform() -> torch.Tensor:
            return torch.rand(len(captions), generator=generator)

        bare = self._bare[captions, (uniform() * len(TEMPLATES)).long()]
        named = grounds.clamp(max=len(GROUNDS) - 1)
        on = self._on[captions, named, (uniform() * len(GROUND_TEMPLATES)).long()]
        mention = (grounds < len(GROUNDS)) & (uniform() < GROUND_FRACTION)
        tokens = torch.where(mention[:, None], on, bare)
        return torch.where((uniform() < EMPTY_FRACTION)[:, None], self._empty, tokens)


def train_unet(
    latents: torch.Tensor,
    captions: torch.Tensor,
    grounds: torch.Tensor,
    tokenizer: CLIPTokenizer,
    course: Course,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Trains denoiser and text encoder; returns their averaged weights.

    Args:
        latents: (rows, channels, 8, 8) with unit standard deviation.
        captions: (rows,) indices of the captions.
        grounds: (rows,) indices of the named grounds.
        tokenizer: From `emoji_text.build_tokenizer`.
        course: Of the training.
    """
    torch.manual_seed(course.seed)
    batch, device = course.batch, course.device
    unet = channels_last(build_unet())
    encoder = build_text_encoder(tokenizer)
    both = nn.ModuleList([unet, encoder]).to(device).train()
    phrases = Captions(tokenizer)
    alphas = build_scheduler().alphas_cumprod
    run = TrainingRun("unet", both, course, peak=1.2e-3, warmup=300, decay=0.999, keep=KEPT_STEPS)
    for generator in run:
        rows = torch.randint(len(latents), (batch,), generator=generator)
        clean = latents[rows].float()
        # One timestep out of each of `batch` equal parts of the schedule: a steadier loss.
        shift = torch.rand(batch, generator=generator)
        timesteps = ((torch.arange(batch) + shift) / batch * len(alphas)).long()
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        tokens = phrases.draw(captions[rows], grounds[rows], generator)
        states = encoder(tokens.to(device)).last_hidden_state
        noisy = noisy.to(device).contiguous(memory_format=torch.channels_last)
        predicted = unet(noisy, timesteps.to(device), encoder_hidden_states=states).sample
        errors = (predicted - velocity.to(device)).square().mean((1, 2, 3))
        run.update((velocity_weight(alphas[timesteps]).to(device) * errors).mean())
    both.cpu().load_state_dict(run.averaged())
    return unet, encoder
