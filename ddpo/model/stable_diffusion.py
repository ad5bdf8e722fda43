"""The frozen parts of a Stable Diffusion: prompt encoding, noise schedule, decoding."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from diffusers.schedulers import KarrasDiffusionSchedulers

from config.settings.errors import UserError
from ddpo.ddim import PREDICTION_TYPES, SAMPLERS, Schedule, make_schedule
from ddpo.devices import at_least_float32, is_large
from ddpo.model.families import FAMILIES, Frame, Reading
from ddpo.model.loading import load_pipeline
from ddpo.steps import DISTILLED
from ddpo.types import Conditioning

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from config.base import PretrainedSettings, SampleSettings

_REMEMBERED_PROMPTS = 4096
NO_SECOND_ROW = (
    "the UNet of this model reads the guidance scale, so its pictures have no second row that a "
    "negative prompt or a rescaled guidance could change; leave them at their defaults"
)
_CLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (DDIMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler, TCDScheduler)
}
# Schedulers of models that were distilled for one sampler -> that sampler.
_DISTILLED = {SAMPLERS[name]: name for name in DISTILLED}
# Samplers of one and the same discrete noise schedule, which DDIM can take over.
_SCHEDULERS = {each.name for each in KarrasDiffusionSchedulers} - {"EDMEulerScheduler"}
_SCHEDULERS |= set(_DISTILLED)


class BaseModel(Protocol):
    """The interface of a base model for sampling and training, whatever it draws.

    Attributes:
        device: where it runs.
    """

    device: torch.device

    @property
    def unet(self) -> torch.nn.Module:
        """Called as a UNet2DConditionModel; `Agents` wraps its target layers in place."""
        ...

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        """All networks that are called in a run, the UNet first; their weights are frozen."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of what `decode` makes."""
        ...

    def schedule(self, settings: SampleSettings) -> Schedule:
        """The denoising steps, on the device."""
        ...

    def encode_prompts(self, texts: Sequence[str]) -> Conditioning:
        """One row per text."""
        ...

    def encode_negative(self, text: str) -> Conditioning:
        """The one row that guidance leads away from."""
        ...

    def embed_guidance(self, scale: float) -> torch.Tensor | None:
        """The guidance scale (1, W) as the UNet reads it; None where guidance takes two rows."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (rows, 3, H, W) float32 from latents (rows, C, h, w); differentiable."""
        ...


class FrozenDiffusion:
    """Text encoders, VAE, scheduler and UNet of a Stable Diffusion, all frozen.

    Args:
        pipe: a loaded pipeline of one of the `FAMILIES`; its modules are used as they are.
        device: where sampling and training happen.
        frame: size of the pictures; by default the model's own.
        reading: of prompts; by default at most one part of each, with all layers.

    Raises:
        UserError: if DDIM cannot sample this model, or its text encoders have too few layers.
    """

    def __init__(
        self,
        pipe: Any,
        device: torch.device | str = "cpu",
        frame: Frame | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.family = FAMILIES[type(pipe).__name__]
        self._reading = reading or Reading()
        encoders = {name: getattr(pipe, name) for name in self.family.text_encoders}
        layers = {name: part.config.num_hidden_layers for name, part in encoders.items()}
        self.family.check(layers, self._reading)
        self.frame = frame or Frame.of(pipe)
        scheduler = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
        self._configs = scheduler, pipe.unet.config, pipe.vae.config
        self.pipe = pipe
        self.scheduler()  # refuses what cannot be sampled
        pipe.to(device)
        self.device = torch.device(device)
        if pipe.vae.dtype != (dtype := self.family.vae_dtype(pipe)):
            pipe.vae.to(dtype)
        if is_large(self.frame.height * self.frame.width):
            pipe.vae.enable_slicing()
        for network in self.networks:
            network.requires_grad_(False).eval()
        self._encode_one = lru_cache(maxsize=_REMEMBERED_PROMPTS)(self._encode)

    @classmethod
    def load(
        cls, settings: PretrainedSettings, device: torch.device | str = "cpu"
    ) -> FrozenDiffusion:
        """Load a model from a folder, a file, a hub or the assets; see `load_pipeline`.

        Raises:
            UserError: naming the model and what to do, if it cannot be found or used.
        """
        torch.backends.cuda.matmul.allow_tf32 = settings.dtype == "tf32"
        torch.backends.cudnn.allow_tf32 = settings.dtype == "tf32"
        pipe = load_pipeline(settings)
        frame = Frame.of(pipe, settings.height, settings.width)
        return cls(pipe, device, frame, reading_of(settings))

    @property
    def unet(self) -> torch.nn.Module:
        """The shared UNet; `Agents` wraps its attention projections in place."""
        unet: torch.nn.Module = self.pipe.unet
        return unet

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        """UNet, VAE and text encoders."""
        return (self.unet, self.pipe.vae, *self._text_encoders)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents."""
        factor = self.pipe.vae_scale_factor
        channels = self.pipe.unet.config.in_channels
        return channels, self.frame.height // factor, self.frame.width // factor

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the pictures."""
        return self.frame.height, self.frame.width

    def scheduler(self, sampler: str = "") -> Any:
        """A scheduler of diffusers; see `scheduler_of`."""
        return scheduler_of(*self._configs, type(self.pipe).__name__, sampler)

    def schedule(self, settings: SampleSettings) -> Schedule:
        """The denoising steps, on the device.

        Raises:
            UserError: if the model's noise schedule has no such steps, or the model does not read a
                setting; see `check_guidance`.
        """
        check_guidance(self.pipe.unet.config, settings)
        scheduler = self.scheduler(settings.sampler)
        return make_schedule(scheduler, settings.num_steps, settings.eta).to(self.device)

    def encode_prompts(self, texts: Sequence[str]) -> Conditioning:
        """One row per text; each distinct text is encoded once and remembered."""
        return Conditioning.cat([self._encode_one(text) for text in texts])

    def encode_negative(self, text: str) -> Conditioning:
        """The one row that guidance leads away from; "" is no negative prompt."""
        return self.family.negative(self.pipe, text, self._encode_one(text))

    def embed_guidance(self, scale: float) -> torch.Tensor | None:
        """The guidance scale (1, W) as the UNet reads it; None where guidance takes two rows."""
        width = self.pipe.unet.config.time_cond_proj_dim
        if width is None:
            return None
        # No guidance is 0 in Luo et al. 2023, and 1 here.
        embedded: torch.Tensor = self.pipe.get_guidance_scale_embedding(
            torch.tensor([scale - 1.0]), width
        )
        return embedded.to(self.device)

    def cut(self, texts: Iterable[str]) -> list[str]:
        """The prompts whose ends the model does not read."""
        return [text for text in texts if self._reading.cuts(self.pipe.tokenizer, text)]

    def offload_text_encoders(self, texts: Iterable[str]) -> None:
        """Encode all these prompts, remember them for good and free the encoders' memory.

        A prompt that comes later is encoded on the CPU.
        """
        self._encode_one = lru_cache(maxsize=None)(self._encode)
        for text in texts:
            self._encode_one(text)
        for encoder in self._text_encoders:
            encoder.to("cpu")

    @property
    def _text_encoders(self) -> list[torch.nn.Module]:
        return [getattr(self.pipe, name) for name in self.family.text_encoders]

    @torch.no_grad()
    def _encode(self, text: str) -> Conditioning:
        encoded = self.family.encode(self.pipe, text, self.frame, self._reading)
        return encoded.map(lambda values: values.to(self.device))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (rows, 3, H, W) float32 in [0, 1] from latents (rows, C, h, w).

        Gradients flow to the latents, if any are asked for.
        """
        vae = self.pipe.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor
        images: torch.Tensor = vae.decode(scaled, return_dict=False)[0]
        return at_least_float32((images * 0.5 + 0.5).clamp(0, 1))


def reading_of(settings: PretrainedSettings) -> Reading:
    """How the settings want prompts to be read."""
    return Reading(max_parts=settings.prompt_parts, clip_skip=settings.clip_skip)


def check_guidance(unet: Mapping[str, Any], sample: SampleSettings) -> None:
    """Refuse settings that need a second row, if the UNet reads the guidance scale itself.

    Args:
        unet: its configuration.
        sample: how pictures are drawn.

    Raises:
        UserError: naming all such settings.
    """
    if unet.get("time_cond_proj_dim") is None:
        return
    given = {
        "negative_prompt": sample.negative_prompt,
        "guidance_rescale": sample.guidance_rescale,
    }
    if unread := [f"sample.{name}={value!r}" for name, value in given.items() if value]:
        raise UserError(f"{' and '.join(unread)} cannot be used: {NO_SECOND_ROW}")


def scheduler_of(
    scheduler: Mapping[str, Any],
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    kind: str = "model",
    sampler: str = "",
) -> Any:
    """A sampler of diffusers with the model's own noise schedule, spacing and offset.

    Nothing is clipped, because a clipped mean is no longer the mean of the Gaussian whose density
    is used.

    Args:
        scheduler: configuration of the scheduler.
        unet: configuration of the UNet.
        vae: configuration of the VAE.
        kind: of pipeline, for messages.
        sampler: one of `SAMPLERS`; empty: the one that the model was distilled for, else DDIM.

    Raises:
        UserError: listing what keeps this model from being a chain of Gaussian steps.
    """
    problems = []
    name, prediction = scheduler.get("_class_name"), scheduler.get("prediction_type", "epsilon")
    if name is not None and name not in _SCHEDULERS:
        problems.append(f"its scheduler {name} has no DDIM equivalent")
    elif prediction not in PREDICTION_TYPES:
        problems.append(
            f"its scheduler's prediction_type {prediction!r} is not one of "
            f"{', '.join(PREDICTION_TYPES)}"
        )
    taken, made = unet["in_channels"], vae.get("latent_channels", unet["in_channels"])
    if taken != made:
        problems.append(
            f"its UNet takes {taken} channels, its VAE makes {made}: it draws from a picture, not "
            "from text alone"
        )
    if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
        problems.append("its VAE shifts its latents")
    if not problems:
        sampler = sampler or _DISTILLED.get(name or "", "ddim")
        changes = {} if sampler == "euler_a" else {"clip_sample": False, "thresholding": False}
        try:
            return _CLASSES[SAMPLERS[sampler]].from_config(scheduler, **changes)
        except NotImplementedError as error:  # a beta schedule that DDIM does not know
            problems.append(str(error))
    raise UserError(
        f"this {kind} cannot be sampled by DDIM: {'; '.join(problems)}. Use a text-to-image Stable "
        "Diffusion 1.x, 2.x or XL, with an epsilon or v-prediction scheduler"
    )
