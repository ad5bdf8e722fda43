"""A conditional diffusion of vectors of 8 numbers, with the interface of a base model.

A prompt is a time on a clock face, such as "4:30". Its vectors lie around a point of the unit
circle in the first two dimensions, and around zero in the others. The denoiser is an MLP, trained
here in a few seconds, always in the same way.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMScheduler
from torch import nn

from ddpo.assets import resolve_model
from ddpo.ddim import make_schedule
from ddpo.rules.forward_process import add_noise
from ddpo.types import Conditioning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.base import SampleSettings
    from ddpo.ddim import Schedule

DIMENSIONS = 8
SPREAD = 0.5  # standard deviation of the data around its prompt's point
_WIDTH = 64
_NUM_FREQUENCIES = 8
_TRAINING_STEPS = 2000
_BATCH = 256
_LEARNING_RATE = 2e-3


def angle(prompt: str) -> float:
    """The angle of a clock's hand, in radians from 12 o'clock; 0 if the prompt is not a time.

    >>> round(angle("4:30") / math.pi, 6)
    0.75
    """
    time = re.fullmatch(r"(\d+):(\d\d)", prompt)
    hours, minutes = time.groups() if time else ("0", "0")
    return 2 * math.pi * (int(hours) + int(minutes) / 60) / 12


def points(prompts: Sequence[str]) -> torch.Tensor:
    """Points (rows, 2) of the unit circle, one per prompt."""
    angles = torch.tensor([angle(prompt) for prompt in prompts])
    return torch.stack([angles.cos(), angles.sin()], dim=1)


class Denoiser(nn.Module):
    """Predicts the noise in (rows, 8, 1, 1) at a timestep, given a prompt's point of the circle."""

    frequencies: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        features = DIMENSIONS + 2 + 2 * _NUM_FREQUENCIES
        self.layers = nn.ModuleList(
            [
                nn.Linear(features, _WIDTH),
                nn.Linear(_WIDTH, _WIDTH),
                nn.Linear(_WIDTH, _WIDTH),
                nn.Linear(_WIDTH, DIMENSIONS),
            ]
        )
        self.register_buffer("frequencies", torch.logspace(-3, 0, _NUM_FREQUENCIES))

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = False,  # noqa: ARG002 - as diffusers' UNets are called
    ) -> tuple[torch.Tensor]:
        """The noise (rows, 8, 1, 1), as a tuple with one entry."""
        rows = len(latents)
        phases = timesteps.to(latents.dtype).expand(rows)[:, None] * self.frequencies
        hidden = torch.cat(
            [latents.flatten(1), encoder_hidden_states.flatten(1), phases.cos(), phases.sin()],
            dim=1,
        )
        for layer in self.layers[:-1]:
            hidden = nn.functional.silu(layer(hidden))
        return (self.layers[-1](hidden).view_as(latents),)


class ToyDiffusion:
    """The denoiser with its prompts and its noise schedule, as a `BaseModel`.

    Args:
        denoiser: trained; wrapped in place by `Agents`, so each run needs its own.
    """

    latent_shape = (DIMENSIONS, 1, 1)
    image_size = (DIMENSIONS, 1)

    def __init__(self, denoiser: Denoiser) -> None:
        self.unet: nn.Module = denoiser
        self.networks = (self.unet,)
        self.device = torch.device("cpu")
        self.scheduler = _scheduler()

    @classmethod
    def trained(cls) -> ToyDiffusion:
        """A new base model with the trained weights, which are always the same."""
        denoiser = Denoiser()
        denoiser.load_state_dict(_trained_weights())
        return cls(denoiser)

    def schedule(self, settings: SampleSettings) -> Schedule:
        """The denoising steps."""
        return make_schedule(self.scheduler, settings.num_steps, settings.eta)

    def encode_prompts(self, texts: Sequence[str]) -> Conditioning:
        """The prompts' points of the circle, as texts with one token."""
        return Conditioning(text=points(texts)[:, None])

    def encode_negative(self, text: str) -> Conditioning:  # noqa: ARG002
        """The middle of the circle. The denoiser has not learnt it, so guidance stays at 1."""
        return Conditioning(text=torch.zeros(1, 1, 2))

    def embed_guidance(self, scale: float) -> None:
        """None: the denoiser reads no guidance scale."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The vectors as grey columns of 8 pixels, (rows, 3, 8, 1), not limited to [0, 1]."""
        return latents.float().reshape(-1, 1, *self.image_size).expand(-1, 3, -1, -1)


def _scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's scheduler, which the embedded model also has."""
    return DDIMScheduler.from_pretrained(resolve_model("emoji-sd"), subfolder="scheduler")


def data(angles: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw vectors (rows, 8) around the points at these angles (rows,)."""
    noise = SPREAD * torch.randn(len(angles), DIMENSIONS, generator=generator)
    noise[:, 0] += angles.cos()
    noise[:, 1] += angles.sin()
    return noise


@lru_cache(maxsize=1)
def _trained_weights() -> dict[str, Any]:
    """Train on all angles with Ho et al. 2020, eq. 14, from fixed random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = Denoiser()
    generator = torch.Generator().manual_seed(0)
    alpha_bars = _scheduler().alphas_cumprod
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _TRAINING_STEPS)
    for _ in range(_TRAINING_STEPS):
        angles = 2 * math.pi * torch.rand(_BATCH, generator=generator)
        steps = torch.randint(len(alpha_bars), (_BATCH,), generator=generator)
        noise = torch.randn(_BATCH, DIMENSIONS, generator=generator)
        noisy = add_noise(data(angles, generator), noise, alpha_bars[steps][:, None])
        told = torch.stack([angles.cos(), angles.sin()], dim=1)
        (predicted,) = denoiser(noisy[..., None, None], steps, told[:, None])
        loss = (predicted.flatten(1) - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return denoiser.state_dict()
