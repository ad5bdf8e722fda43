"""The differences between the pipeline classes of Stable Diffusion, in one place.

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
    from collections.abc import Iterable, Mapping, Sequence


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
        """(1, 6) sizes that SDXL reads: original size, crop and target size of a whole picture.

        Podell et al. 2023, section 2.2, in the order of diffusers' pipeline.
        """
        size = (self.height, self.width)
        return torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)


def own_sides(sample_size: int | Sequence[int] | None) -> tuple[int, int]:
    """Height and width of a model's latents by its UNet's configuration; 0 if it gives none."""
    if sample_size is None:
        return 0, 0
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    return height, width


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How prompts are read.

    Attributes:
        max_parts: how many parts of a prompt are read, at most; the rest is cut. A part has as many
            tokens as the text encoders allow, 75 for CLIP, between a begin and an end token, as in
            kohya's sd-scripts and the front ends.
        clip_skip: layers left out at the end of the text encoders, as diffusers counts.
    """

    max_parts: int = 1
    clip_skip: int = 0

    def parts(self, tokenizer: Any, text: str) -> list[list[int]]:
        """The tokens of a prompt: at least one part, all of the same length."""
        length = _length(tokenizer)
        first, *words, last = _tokens(tokenizer, text)
        own = length - 2
        parts = [words[start : start + own] for start in range(0, len(words), own)] or [[]]
        padding = [tokenizer.pad_token_id]
        framed = [[first, *part, last] for part in parts[: self.max_parts]]
        return [part + padding * (length - len(part)) for part in framed]

    def cuts(self, tokenizer: Any, text: str) -> bool:
        """Whether the end of a prompt is not read."""
        return len(_tokens(tokenizer, text)) - 2 > self.max_parts * (_length(tokenizer) - 2)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    tokens: list[int] = tokenizer(text, verbose=False).input_ids
    return tokens


def _length(tokenizer: Any) -> int:
    """The number of tokens that the text encoders read; CLIP's if the tokenizer does not say."""
    length: int = tokenizer.model_max_length
    return length if length < 2**16 else 77


class Family(ABC):
    """One pipeline class of diffusers.

    Attributes:
        pipeline_class: loads and holds the parts.
        load_arguments: arguments for loading; they leave out optional parts.
        text_encoders: names of the parts that only prompts need.
        skipped_layers: layers left out at the end of the text encoders besides `Reading.clip_skip`.
    """

    pipeline_class: ClassVar[Any]
    load_arguments: ClassVar[Mapping[str, Any]] = {}
    text_encoders: ClassVar[tuple[str, ...]]
    skipped_layers: ClassVar[int] = 0

    @abstractmethod
    def encode(self, pipe: Any, text: str, frame: Frame, reading: Reading) -> Conditioning:
        """One row for one prompt, on the device of the text encoders."""

    def check(self, layers: Mapping[str, int], reading: Reading) -> None:
        """Refuse to leave out more layers than there are.

        Args:
            layers: text encoder -> how many it has.
            reading: of prompts.

        Raises:
            UserError: naming the most that can be left out.
        """
        most = min(layers.values()) - 1 - self.skipped_layers
        if reading.clip_skip > max(most, 0):
            listed = " and ".join(f"{num} of {name}" for name, num in layers.items())
            raise UserError(
                f"pretrained.clip_skip={reading.clip_skip} leaves none of the layers: {listed}; "
                f"set it to at most {max(most, 0)}"
            )

    def negative(self, pipe: Any, text: str, encoded: Conditioning) -> Conditioning:
        """The unconditional row of guidance, given what `encode` made of the negative prompt."""
        del pipe, text
        return encoded

    def vae_dtype(self, pipe: Any) -> torch.dtype:
        """The dtype that the VAE must run in."""
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

    def encode(self, pipe: Any, text: str, frame: Frame, reading: Reading) -> Conditioning:
        """See `Family`."""
        del frame
        encoder = pipe.text_encoder
        embeds = []
        for part in reading.parts(pipe.tokenizer, text):
            tokens = torch.tensor([part], device=encoder.device)
            if reading.clip_skip:
                hidden = encoder(tokens, output_hidden_states=True).hidden_states
                # transformers 5 has no `text_model` in between
                norm = getattr(encoder, "text_model", encoder).final_layer_norm
                embeds.append(norm(hidden[-1 - reading.clip_skip]))
            else:
                embeds.append(encoder(tokens)[0])
        return Conditioning(text=torch.cat(embeds, dim=1))


class StableDiffusionXL(Family):
    """SDXL: two text encoders, a pooled embedding, sizes and crops (Podell et al. 2023)."""

    pipeline_class = StableDiffusionXLPipeline
    load_arguments: ClassVar[Mapping[str, Any]] = _UNUSED
    text_encoders = ("text_encoder", "text_encoder_2")
    skipped_layers = 1

    def encode(self, pipe: Any, text: str, frame: Frame, reading: Reading) -> Conditioning:
        """See `Family`."""
        embeds = []
        for name in self.text_encoders:
            encoder = getattr(pipe, name)
            tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"))
            parts = reading.parts(tokenizer, text)
            outs = [
                encoder(torch.tensor([part], device=encoder.device), output_hidden_states=True)
                for part in parts
            ]
            hidden = [out.hidden_states[-2 - reading.clip_skip] for out in outs]
            embeds.append(torch.cat(hidden, dim=1))
        pooled = outs[0][0]  # the second encoder's, of the first part
        text_embeds = torch.cat(embeds, dim=-1)
        return Conditioning(
            text=text_embeds,
            pooled=pooled,
            time_ids=frame.time_ids.to(text_embeds.device, text_embeds.dtype),
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

# Other pipelines of the same parts: only their sampling loops differ.
SAME_PARTS = {"LatentConsistencyModelPipeline": FAMILIES["StableDiffusionPipeline"]}


def family_of(text_encoders: Iterable[str]) -> Family:
    """The family that has exactly these text encoders."""
    names = set(text_encoders)
    return next(each for each in FAMILIES.values() if set(each.text_encoders) == names)
