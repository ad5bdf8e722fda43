"""Other ways of drawing: with the schedulers of diffusers, and by blended predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor

from ddpo.sampler import Sampler
from front.errors import ChoiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from config.base import SampleSettings
    from ddpo.agents.slots import Agents
    from ddpo.model.stable_diffusion import BaseModel, FrozenDiffusion
    from ddpo.types import Conditioning, PromptBatch
    from front.setups import Setup

_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {  # sampler -> class, changes to its config
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
}


def scheduler_of(setup: Setup, model: FrozenDiffusion) -> Any:
    """Diffusers' scheduler of a setup, with the model's own noise schedule and spacing.

    Raises:
        ChoiceError: if it cannot draw with this model in that many steps.
    """
    name, changes = _SCHEDULERS[setup.sampler]
    pixel = torch.zeros(1, 1, 1, 1)
    try:
        scheduler = getattr(diffusers, name).from_config(model.scheduler().config, **changes)
        scheduler.set_timesteps(setup.steps)
        first = scheduler.timesteps[0]
        scheduler.step(pixel, first, scheduler.scale_model_input(pixel, first))
        is_finite = len(scheduler.timesteps) == setup.steps
    except (NotImplementedError, ValueError, IndexError) as error:
        raise ChoiceError(f"{setup.words()} cannot be drawn with this model: {error}") from error
    if not is_finite:
        raise ChoiceError(
            f"{setup.words()} cannot be drawn with this model: its scheduler makes "
            f"{len(scheduler.timesteps)} steps of {setup.steps}"
        )
    return scheduler


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pictures:
    """Pictures (rows, 3, H, W) in [0, 1] of prompts, agent-major."""

    prompts: PromptBatch
    images: torch.Tensor


class SetupSampler:
    """Draws as diffusers' pipeline does with a setup's scheduler, one generator per picture.

    Args:
        model: the frozen parts.
        settings: of the run's evaluations; the setup's steps and guidance replace theirs.
        setup: how to draw. Its strength is applied by the adapters.

    Raises:
        UserError: if the setup does not fit the model.
    """

    def __init__(self, model: FrozenDiffusion, settings: SampleSettings, setup: Setup) -> None:
        self._scheduler = scheduler_of(setup, model)
        self._steps, self._model = setup.steps, model
        self._arguments = {"eta": setup.eta} if setup.sampler == "ddim" else {}
        # Its own eta is never used: a policy gradient wants it above 0.
        settings = replace(settings, num_steps=setup.steps, guidance_scale=setup.guidance)
        self._sampler = Sampler(model, settings)

    def prompt_batch(
        self, texts: Sequence[str], seeds: Sequence[int], num_agents: int
    ) -> PromptBatch:
        """Encode prompts; see `Sampler.prompt_batch`."""
        return self._sampler.prompt_batch(texts, seeds, num_agents)

    def chunks(
        self, agents: Agents, prompts: PromptBatch, on_step: Callable[[], object] | None = None
    ) -> Iterator[Pictures]:
        """Pictures of as many samples per agent as fit a pass; see `Sampler.chunks`."""
        for chunk in prompts.chunks(self._sampler.samples_per_pass(prompts.num_agents)):
            with torch.inference_mode():
                images = self._draw(agents, chunk, on_step)
            yield Pictures(prompts=chunk, images=images)

    def _draw(
        self, agents: Agents, prompts: PromptBatch, on_step: Callable[[], object] | None
    ) -> torch.Tensor:
        scheduler, rows, device = self._scheduler, len(prompts.texts), self._model.device
        scheduler.set_timesteps(self._steps, device=device)  # forgets the pictures before, too
        generators = [torch.Generator().manual_seed(seed) for seed in prompts.seeds]
        shape = (rows, *self._model.latent_shape)
        latents = randn_tensor(shape, generator=generators, device=device, dtype=agents.dtype)
        latents = latents * scheduler.init_noise_sigma
        conditioning = prompts.conditioning
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, t)
            out = self._sampler.guided(
                agents, scaled, t.expand(rows), conditioning, prompts.num_agents
            )
            step = scheduler.step(out, t, latents, generator=generators, **self._arguments)
            latents = step.prev_sample
            if on_step is not None:
                on_step()
        return self._model.decode(latents)


class PredictionSampler(Sampler):
    """Draws blends whose parts are mixed in every step, not in their weights.

    Diffusion Blend (Cheng et al. 2025, arXiv 2505.18547): the guided prediction of a step is the
    weighted sum of the parts' guided predictions. All parts of all blends share one UNet pass.

    Args:
        model: the frozen parts.
        settings: of the sampler.
        coefficients: (blends, parts), of sum 1; part p of blend b is in slot b * parts + p.
    """

    def __init__(
        self, model: BaseModel, settings: SampleSettings, coefficients: torch.Tensor
    ) -> None:
        super().__init__(model, settings)
        self._coefficients = coefficients.to(model.device)

    def samples_per_pass(self, num_agents: int) -> int:
        """Samples per blend in one UNet pass, which has a row for each of its parts."""
        return super().samples_per_pass(num_agents * self._coefficients.shape[1])

    def guided(
        self,
        agents: Agents,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        num_agents: int,
    ) -> torch.Tensor:
        """The blends' predictions (rows, C, h, w); see `Sampler.guided`, where agents are parts."""
        coefficients = self._coefficients[:num_agents]
        num_parts = coefficients.shape[1]

        def for_parts(values: torch.Tensor) -> torch.Tensor:
            blends: torch.Tensor = values.unflatten(0, (num_agents, 1, -1))
            return blends.expand(-1, num_parts, *blends.shape[2:]).flatten(0, 2)

        out = super().guided(
            agents,
            for_parts(latents),
            for_parts(timesteps),
            conditioning.map(for_parts),
            num_agents * num_parts,
        )
        parts = out.unflatten(0, (num_agents, num_parts, -1))
        weights = coefficients.to(out)[..., None, None, None, None]
        mixed: torch.Tensor = (weights * parts).sum(dim=1)
        return mixed.flatten(0, 1)
