"""Pictures of any policy or blend of a front, beside the base model's of the same seed."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import torch

from config.settings.errors import UserError
from ddpo import speed
from ddpo.agents.adapter import Adapter
from ddpo.ddim import make_schedule
from ddpo.model.stable_diffusion import NO_SECOND_ROW, FrozenDiffusion
from ddpo.types import Conditioning
from front.errors import ChoiceError
from front.pictures.parameters import arguments_of
from front.settings import device_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.base import Settings
    from front.front import Front
    from front.member import Blend, FrontPolicy

_SLOT = "painter"


class Painter:
    """A run's base model in plain diffusers, with one policy or blend at a time.

    Threads may share it: they draw one after another.

    Args:
        front: of the run.
        model: where the base model is now; empty where it was when the run was made.
        device: empty for a GPU if there is one.
        rows_per_pass: UNet rows at a time; 0 as many as in the run.

    Raises:
        UserError: if the run's settings or its base model cannot be read.
    """

    def __init__(
        self, front: Front, model: str = "", device: str = "", rows_per_pass: int = 0
    ) -> None:
        self._load(settings_of(front, model, rows_per_pass), device)

    @classmethod
    def of_model(cls, settings: Settings, device: str = "") -> Painter:
        """A painter of the base model that settings name, without a run."""
        painter = cls.__new__(cls)
        painter._load(settings, device)
        return painter

    def _load(self, settings: Settings, device: str) -> None:
        where = device_of(device)
        pretrained = settings.pretrained
        if (
            where.type == "cpu"
        ):  # a CPU has no use for half precision, and no kernels for some of it
            pretrained = dataclasses.replace(pretrained, dtype="float32")
        self.settings, self.sample = settings, settings.evaluation_sample
        self._model = FrozenDiffusion.load(pretrained, where)
        speed.apply(settings.speed, self._model)
        self._model.pipe.scheduler = self._model.scheduler(self.sample.sampler)
        self._lock = threading.Lock()
        self._shown: FrontPolicy | Blend | None = None
        self._size = dataclasses.asdict(self._model.frame)

    @property
    def sampler(self) -> dict[str, Any]:
        """The run's sampler settings, under diffusers' names."""
        return arguments_of(self.sample)

    @property
    def picture_size(self) -> int:
        """Pixels of a picture's longer side."""
        return max(self._model.image_size)

    @torch.inference_mode()
    def draw(
        self,
        member: FrontPolicy | Blend | None,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        on_batch: Callable[[int], object] | None = None,
        **changes: Any,
    ) -> torch.Tensor:
        """Draw one picture for each prompt and seed.

        A picture depends on its own seed only: it equals
        `pipe(prompt, generator=torch.Generator().manual_seed(seed))`.

        Args:
            member: policy or blend; None for the base model.
            prompts: one per picture.
            seeds: one per picture.
            on_batch: called with the number of pictures after every batch.
            changes: to the run's sampler settings, under diffusers' names (`guidance_scale`,
                `num_inference_steps`, `eta`, `negative_prompt`).

        Returns:
            (n, 3, H, W) uint8 on the CPU.

        Raises:
            UserError: if the adapter is missing, damaged, or made for another model;
                `ChoiceError` if the model does not have that many steps, or no negative prompt.
        """
        settings = {**self.sampler, **changes}
        try:
            make_schedule(
                self._model.pipe.scheduler, settings["num_inference_steps"], settings["eta"]
            )
        except UserError as error:
            raise ChoiceError(str(error)) from error
        negative_prompt = settings.pop("negative_prompt") or ""
        guidance = settings["guidance_scale"]
        embeds_guidance = self._model.embed_guidance(guidance) is not None
        if negative_prompt and embeds_guidance:
            raise ChoiceError(f"the negative prompt cannot be used: {NO_SECOND_ROW}")
        with self._lock:
            self._show(member)
            negative = self._model.encode_negative(negative_prompt)
            is_guided = guidance > 1 and not embeds_guidance
            batch = max(1, self.sample.rows_per_pass // (2 if is_guided else 1))
            images: list[torch.Tensor] = []
            for start in range(0, len(prompts), batch):
                texts = list(prompts[start : start + batch])
                own_seeds = seeds[start : start + batch]
                generators = [torch.Generator().manual_seed(seed) for seed in own_seeds]
                latents = self._model.pipe(
                    **_embeds(negative, self._model.encode_prompts(texts)),
                    generator=generators,
                    output_type="latent",
                    **self._size,
                    **settings,
                ).images
                images += self._model.decode(latents)
                if on_batch is not None:
                    on_batch(len(texts))
        return torch.stack(images).mul(255).round().byte().cpu()

    def _show(self, member: FrontPolicy | Blend | None) -> None:
        """Make the pipeline draw as a member, or as the base model."""
        pipe = self._model.pipe
        if member is None:
            if self._shown is not None:
                pipe.unload_lora_weights()
        elif member is not self._shown:
            Adapter.of(member).apply(pipe, _SLOT)
        self._shown = member


def _embeds(negative: Conditioning, prompts: Conditioning) -> dict[str, torch.Tensor]:
    """Prompts as arguments of a pipeline, read as in training even where diffusers cuts them."""
    negative, prompts = Conditioning.of_one_length([negative.expand(len(prompts)), prompts])
    embeds = {"prompt_embeds": prompts.text, "negative_prompt_embeds": negative.text}
    if prompts.pooled is not None and negative.pooled is not None:
        embeds["pooled_prompt_embeds"] = prompts.pooled
        embeds["negative_pooled_prompt_embeds"] = negative.pooled
    return embeds
