"""The frozen parts of Stable Diffusion: loading, prompt encoding, decoding."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from config.errors import UserError
from ddpo.assets import resolve_model
from ddpo.ddim import Schedule, make_schedule
from ddpo.types import Conditioning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.schema import PretrainedSettings, SampleSettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenDiffusion:
    """Text encoder, VAE, scheduler and UNet of a Stable Diffusion, all frozen.

    Args:
        pipe: a loaded pipeline; its modules are used as they are.
        device: where sampling and training happen.
    """

    def __init__(self, pipe: StableDiffusionPipeline, device: torch.device | str = "cpu") -> None:
        self.pipe: Any = pipe.to(device)
        self.device = torch.device(device)
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            module.requires_grad_(False).eval()
        # DDIM with the model's own noise schedule, spacing and offset; nothing is clipped, because
        # a clipped mean is no longer the mean of the Gaussian whose density is used.
        self.scheduler = DDIMScheduler.from_config(
            pipe.scheduler.config, clip_sample=False, thresholding=False
        )
        self._encode_one = lru_cache(maxsize=4096)(self._encode)

    @classmethod
    def load(
        cls, settings: PretrainedSettings, device: torch.device | str = "cpu"
    ) -> FrozenDiffusion:
        """Load a model from a folder, a hub or the assets; weights as safetensors only.

        Raises:
            UserError: naming the model and what to do, if it cannot be found.
        """
        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                resolve_model(settings.model),
                revision=settings.revision or None,
                variant=settings.variant or None,
                dtype=DTYPES[settings.dtype],
                use_safetensors=True,
                safety_checker=None,
                requires_safety_checker=False,
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"pretrained.model={settings.model!r} could not be loaded: {error}\nGive a folder "
                "made by save_pretrained, the id of a model on the hub (and a network), or "
                "'emoji-sd', which ships with this project."
            ) from error
        pipe.set_progress_bar_config(disable=True)
        if settings.channels_last:
            pipe.unet.to(memory_format=torch.channels_last)
        return cls(pipe, device)

    @property
    def unet(self) -> torch.nn.Module:
        """The shared UNet; `Agents` wraps its attention projections in place."""
        unet: torch.nn.Module = self.pipe.unet
        return unet

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) at the model's own resolution."""
        config = self.pipe.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    def schedule(self, settings: SampleSettings) -> Schedule:
        """The denoising steps, on the device."""
        return make_schedule(self.scheduler, settings.num_steps, settings.eta).to(self.device)

    def encode_prompts(self, texts: Sequence[str]) -> Conditioning:
        """One row a text; each distinct text is encoded once and remembered."""
        return Conditioning.cat([self._encode_one(text) for text in texts])

    @torch.no_grad()
    def _encode(self, text: str) -> Conditioning:
        embeds: torch.Tensor = self.pipe.encode_prompt(
            text, self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
        return Conditioning(text=embeds)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (rows, 3, H, W) float32 in [0, 1] from latents (rows, C, h, w)."""
        vae = self.pipe.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor
        images: torch.Tensor = vae.decode(scaled, return_dict=False)[0]
        return (images * 0.5 + 0.5).clamp(0, 1).float()
