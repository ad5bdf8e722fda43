"""What the pipeline classes of Stable Diffusion do differently: the one seam between them.

A family says how its text encoders make a `Conditioning` and what its VAE needs. Everything else,
adapters, sampling and training, is the same for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from config.settings.errors import UserError
from ddpo.types import Conditioning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_UNUSED = {"feature_extractor": None, "image_encoder": None}  # of picture prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The size of the pictures, in pixels."""

    height: int
    width: int

    @classmethod
    def of(cls, pipe: Any, height: int = 0, width: int = 0) -> Frame:
        """The frame of this height and width; 0 is the model's own.

        Raises:
            UserError: if the model cannot draw that size.
        """
        return cls.of_configs(pipe.unet.config, pipe.vae.config, height, width)

    @classmethod
    def of_configs(
        cls, unet: Mapping[str, Any], vae: Mapping[str, Any], height: int = 0, width: int = 0
    ) -> Frame:
        """The same, of the configurations of a UNet and a VAE."""
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        own_height, own_width = (side * scale for side in own_sides(unet.get("sample_size")))
        frame = cls(height=height or own_height, width=width or own_width)
        factor = scale * 2 ** (len(unet["block_out_channels"]) - 1)
        for name, value in (("height", frame.height), ("width", frame.width)):
            if value % factor or value <= 0:
                near = sorted({max(1, value // factor) * factor, (value // factor + 1) * factor})
                raise UserError(
                    f"pretrained.{name}={value} must be a multiple of {factor} for this model (its "
                    "VAE's scale times its UNet's downsampling); try "
                    f"{' or '.join(map(str, near))}, or 0 for the model's own size"
                )
        return frame

    @property
    def time_ids(self) -> torch.Tensor:
        """(1, 6) what SDXL is told: original size, crop and target size of a whole picture.

        Podell et al. 2023, section 2.2, in the order of diffusers' pipeline.
        """
        size = (self.height, self.width)
        return torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)


def own_sides(sample_size: int | Sequence[int] | None) -> tuple[int, int]:
    """Height and width of a model's latents by its UNet's configuration; 0 where it is silent."""
    if sample_size is None:
        return 0, 0
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    return height, width


class Family(ABC):
    """One pipeline class of diffusers.

    Attributes:
        pipeline_class: loads and holds the parts.
        load_arguments: for loading: which optional parts to leave out.
        text_encoders: names of the parts that only prompts need.
    """

    pipeline_class: ClassVar[Any]
    load_arguments: ClassVar[Mapping[str, Any]] = {}
    text_encoders: ClassVar[tuple[str, ...]]

    @abstractmethod
    def encode(self, pipe: Any, text: str, frame: Frame) -> Conditioning:
        """One row for one prompt, on the device of the text encoders."""

    def negative(self, pipe: Any, text: str, encoded: Conditioning) -> Conditioning:
        """The unconditional row of guidance, given what `encode` made of the negative prompt."""
        del pipe, text
        return encoded

    def vae_dtype(self, pipe: Any) -> torch.dtype:
        """What the VAE must run in."""
        dtype: torch.dtype = pipe.vae.dtype
        return dtype


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x, epsilon or v-prediction (Rombach et al. 2022)."""

    pipeline_class = StableDiffusionPipeline
    load_arguments: ClassVar[Mapping[str, Any]] = {
        **_UNUSED,
        "safety_checker": None,
        "requires_safety_checker": False,
    }
    text_encoders = ("text_encoder",)

    def encode(self, pipe: Any, text: str, frame: Frame) -> Conditioning:
        """See `Family`."""
        del frame
        embeds = pipe.encode_prompt(
            text,
            pipe.text_encoder.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )[0]
        return Conditioning(text=embeds)


class StableDiffusionXL(Family):
    """SDXL: two text encoders, a pooled embedding, sizes and crops (Podell et al. 2023)."""

    pipeline_class = StableDiffusionXLPipeline
    load_arguments: ClassVar[Mapping[str, Any]] = _UNUSED
    text_encoders = ("text_encoder", "text_encoder_2")

    def encode(self, pipe: Any, text: str, frame: Frame) -> Conditioning:
        """See `Family`."""
        device = pipe.text_encoder.device
        embeds, _, pooled, _ = pipe.encode_prompt(
            text, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return Conditioning(
            text=embeds, pooled=pooled, time_ids=frame.time_ids.to(device, embeds.dtype)
        )

    def negative(self, pipe: Any, text: str, encoded: Conditioning) -> Conditioning:
        """Zeros for an empty prompt where the model's configuration says so, as in diffusers."""
        if text or not pipe.config.force_zeros_for_empty_prompt:
            return encoded
        return encoded.without_text()

    def vae_dtype(self, pipe: Any) -> torch.dtype:
        """Float32 where the configuration says `force_upcast`: SDXL's VAE overflows in float16."""
        return torch.float32 if pipe.vae.config.force_upcast else super().vae_dtype(pipe)


FAMILIES: dict[str, Family] = {
    family.pipeline_class.__name__: family for family in (StableDiffusion(), StableDiffusionXL())
}
