"""The cost of more agents: only their images, and less than training one after another.

    python -m benchmarks.agents            # both models; about 10 minutes on one core
    python -m benchmarks.agents --quick

Three tables for each model, on one thread:

1. K = 1..16 agents with the same number of images in all: CPU time per image.
2. K agents in one pass against peft's adapters on the same UNet, with the same images per pass and
   agent: denoising, sampling (denoising and decoding) and training. peft runs in two orders.
   "lockstep" runs every agent in each step, with `set_adapter` before each pass, like a loop that
   moves all agents together. "sequential" finishes one agent before the next, so that `set_adapter`
   costs nothing.
3. Bytes that each further agent keeps: all live tensors, before and after.

The last line is JSON. `*_speedup_8x1` compares 8 agents with one image each to lockstep, and
`*_in_turn` to sequential. `time_per_image_spread` is the largest deviation from K = 1.
"""

from __future__ import annotations

import gc
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from peft import LoraConfig

from benchmarks import common
from benchmarks.models import MODELS, random_pipeline
from benchmarks.rig import Rig, one_rollout
from ddpo.agents.loss_scale import LossScale
from ddpo.model.stable_diffusion import FrozenDiffusion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.base import AdapterSettings, Settings, TrainSettings
    from ddpo.types import Conditioning

TOTAL_IMAGES = 16
AGENTS = (1, 2, 4, 8, 16)
GROUPED_AGENTS = 8
IMAGES_PER_AGENT = (1, 2, 4)


class PeftAgents:
    """The baseline: K adapters of peft on one UNet of diffusers, one of them active at a time.

    It has the methods of `ddpo.agents.slots.Agents` that sampler and update use, for one agent.

    Args:
        unet: gets the adapters.
        num_adapters: K.
        adapter: rank and target layers.
        train: AdamW's settings.
    """

    num_agents = 1
    dtype = torch.float32

    def __init__(
        self, unet: Any, num_adapters: int, adapter: AdapterSettings, train: TrainSettings
    ) -> None:
        self.unet = unet.requires_grad_(False).eval()
        self.device = torch.device("cpu")
        self.names = [f"agent{k}" for k in range(num_adapters)]
        lora = LoraConfig(r=adapter.rank, target_modules=list(adapter.target_modules))
        for name in self.names:
            unet.add_adapter(lora, name)
        self._parameters = {
            name: [p for n, p in unet.named_parameters() if f".{name}." in n] for name in self.names
        }
        self._optimisers = {
            name: torch.optim.AdamW(parameters, lr=train.learning_rate)
            for name, parameters in self._parameters.items()
        }
        self.loss_scale = LossScale(1, self.device, is_on=False)
        self.skipped_in_row = torch.zeros(1)
        self.switches_every_pass = False
        self.activate(0)

    def activate(self, index: int) -> None:
        """Make one agent active."""
        self._active = self.names[index]
        self.unet.set_adapter(self._active)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        num_active: int,  # noqa: ARG002
    ) -> torch.Tensor:
        """One UNet pass of the active agent."""
        if self.switches_every_pass:
            self.unet.set_adapter(self._active)
        out: torch.Tensor = self.unet(
            latents, timesteps, return_dict=False, **conditioning.unet_arguments(self.dtype)
        )[0]
        return out

    @property
    def gradients(self) -> torch.Tensor:
        """Empty: there are no other processes to share gradients with."""
        return torch.zeros(0)

    def zero_grad(self) -> None:
        """Drop the gradients of the active agent."""
        self._optimisers[self._active].zero_grad()

    def step(self, max_grad_norm: float) -> torch.Tensor:
        """Clip the active agent's gradient and take one AdamW step."""
        norm = torch.nn.utils.clip_grad_norm_(self._parameters[self._active], max_grad_norm)
        self._optimisers[self._active].step()
        return norm[None]


def sizes(num_agents: int, images: int, num_steps: int) -> Settings:
    """Settings whose passes carry all `images` of each agent, at one denoising step."""
    return one_rollout(images, num_steps, num_agents * images, 1.0, {})


def make_rig(name: str, num_agents: int, images: int, num_steps: int) -> Rig:
    """K stacked agents whose passes carry all their images together."""
    settings = sizes(num_agents, images, num_steps)
    return Rig.make(FrozenDiffusion(random_pipeline(name)), settings, num_agents)


def scaling(name: str, agents: Sequence[int], num_steps: int, rounds: int) -> float:
    """Table 1; returns the largest relative deviation of the time per image from K = 1."""
    cases: dict[str, Callable[[], object]] = {}
    for k in agents:
        rig = make_rig(name, k, TOTAL_IMAGES // k, num_steps)
        rollout = rig.sample()
        cases[f"sample {k}"] = rig.sample
        cases[f"train {k}"] = partial(rig.train, rollout)
    measured = common.interleaved(cases, rounds)
    totals = {k: measured[f"sample {k}"].median + measured[f"train {k}"].median for k in agents}
    common.say(f"## {name}: {TOTAL_IMAGES} images in all, {num_steps} steps\n")
    common.print_table(
        ["agents", "sampling [ms/image]", "training [ms/image]", "together against one agent"],
        [
            [
                k,
                1000 * measured[f"sample {k}"].median / TOTAL_IMAGES,
                1000 * measured[f"train {k}"].median / TOTAL_IMAGES,
                totals[k] / totals[1],
            ]
            for k in agents
        ],
    )
    return max(abs(total / totals[1] - 1) for total in totals.values())


def denoise(rig: Rig) -> None:
    """One rollout without decoding, which does not involve adapters."""
    with mock.patch.object(rig.sampler.model, "decode", lambda latents: latents[:, :3]):
        rig.sample()


def against_peft(
    name: str, num_agents: int, images: Sequence[int], num_steps: int, rounds: int
) -> dict[str, float]:
    """Table 2; returns the headline figures for one image per agent."""
    rows, headline = [], {}
    for n in images:
        grouped = make_rig(name, num_agents, n, num_steps)
        settings = sizes(1, n, num_steps)
        model, plain = FrozenDiffusion(random_pipeline(name)), random_pipeline(name)
        peft = PeftAgents(plain.unet, num_agents, settings.adapter, settings.train)
        single = Rig.make(model, settings, agents=peft)
        rollouts = grouped.sample(), single.sample()

        parts: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "denoise": (partial(denoise, grouped), partial(denoise, single)),
            "sample": (grouped.sample, single.sample),
            "train": (partial(grouped.train, rollouts[0]), partial(single.train, rollouts[1])),
        }

        def in_turn(part: Callable[[], object], switches: bool, single: Rig = single) -> None:
            single.agents.switches_every_pass = switches
            for index in range(num_agents):
                single.agents.activate(index)
                part()

        cases: dict[str, Callable[[], object]] = {}
        for what, (together, alone) in parts.items():
            cases[f"{what} grouped"] = together
            cases[f"{what} lockstep"] = partial(in_turn, alone, True)
            cases[f"{what} in_turn"] = partial(in_turn, alone, False)
        measured = common.interleaved(cases, rounds)
        for what in parts:
            fast = measured[f"{what} grouped"]
            lockstep = common.paired_ratio(measured[f"{what} lockstep"], fast)
            turn = common.paired_ratio(measured[f"{what} in_turn"], fast)
            per_image = 1000 * fast.median / (num_agents * n)
            rows.append([n, what, per_image, lockstep, turn])
            if n == 1:
                headline[f"{what}_speedup_{num_agents}x1"] = lockstep
                headline[f"{what}_speedup_{num_agents}x1_in_turn"] = turn
    common.say(f"## {name}: {num_agents} agents in one pass against peft's adapters in sequence\n")
    common.print_table(
        [
            "images per agent",
            "",
            "grouped [ms/image]",
            "lockstep / grouped",
            "sequential / grouped",
        ],
        sorted(rows, key=lambda row: (row[1], row[0])),
    )
    return headline


def live_bytes() -> int:
    """Bytes of all live tensors, each storage counted once."""
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if type(tensor) in {torch.Tensor, torch.nn.Parameter} and not tensor.is_meta
    }
    return sum(storages.values())


def memory(name: str) -> float:
    """Table 3; returns the bytes that a further agent keeps, over its adapter's float32 bytes."""
    kept = {}
    for k in (1, 16):
        before = live_bytes()
        rig = make_rig(name, k, TOTAL_IMAGES // k, num_steps=2)
        rig.train(rig.sample())
        kept[k] = live_bytes() - before
        adapter = 4 * len(rig.agents.initial_policy().adapter)
        del rig
    growth = (kept[16] - kept[1]) / 15
    common.say(f"## {name}: memory kept by each further agent\n")
    common.print_table(
        ["adapter [bytes]", "further agent [bytes]", "ratio"],
        [[adapter, round(growth), growth / adapter]],
    )
    return growth / adapter


def main() -> None:
    """Print the tables and the headline."""
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    arguments = parser.parse_args()
    common.pin_to_one_thread()
    rounds, num_steps, models = arguments.rounds, arguments.steps, arguments.models
    agents: Sequence[int] = AGENTS
    images: Sequence[int] = IMAGES_PER_AGENT
    grouped = GROUPED_AGENTS
    if arguments.quick:
        rounds, num_steps, models, agents, images, grouped = 1, 2, ("small",), (1, 2), (1,), 2
    common.print_header("Agents")
    headline = {}
    for name in models:
        spread = scaling(name, agents, num_steps, rounds)
        headline[name] = {
            **against_peft(name, grouped, images, num_steps, rounds),
            "time_per_image_spread": spread,
            "bytes_per_agent_over_adapter": memory(name),
        }
    common.print_headline(headline)


if __name__ == "__main__":
    main()
