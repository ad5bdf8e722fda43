"""Stable Diffusion 1.5 on one GPU: images per second, share of the card's ceiling, memory.

    python -m benchmarks.gpu           # a few minutes on an H100; bfloat16, `speed=fused`
    python -m benchmarks.gpu --quick   # a small model, on a CPU too: does it still run?

The model has Stable Diffusion 1.5's architecture with random weights, so nothing is downloaded. It
draws 512 x 512 pixels with guidance, for six agents.

- Times are between device events.
- FLOPs come from the cost model (`mo_train.py --dry_run`), which counts UNet and decoder.
- The ceiling is a matrix product of the same dtype, measured in the same run.
- Memory is the allocator's peak, shown beside the dry run's estimate.

The last line is JSON.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks import common
from benchmarks.models import letter_tokenizer, save_random_pipeline, sd_scheduler_settings
from benchmarks.rig import Rig, one_rollout
from config.settings.errors import UserError
from ddpo.cost.footprint import known_architecture, measure_footprint, plan_of
from ddpo.cost.plan import expected_memory
from ddpo.devices import DTYPES
from ddpo.model.stable_diffusion import FrozenDiffusion

if TYPE_CHECKING:
    from collections.abc import Callable

    from config.base import Settings
    from ddpo.cost.plan import Footprint

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
AGENTS = 6
FEWEST_STEPS = 2  # one of which a policy gradient can train
GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The model, the device and the sizes that are measured.

    Attributes:
        model: a hub id whose architecture is known, or a folder.
        device: of the model.
        dtype: of its frozen parts.
        steps: numbers of denoising steps.
        images: per agent, for throughput.
        grouped_steps: denoising steps for agents together against one after another.
        agents: numbers of agents for memory.
        rounds: figures are medians over these.
        product: rows of the square matrices whose product is the ceiling.
    """

    model: str
    device: torch.device
    dtype: str
    steps: tuple[int, ...]
    images: int
    grouped_steps: int
    agents: tuple[int, ...]
    rounds: int
    product: int

    @property
    def clock(self) -> Callable[[Callable[[], object]], float]:
        """Device events, or CPU time."""
        return common.cuda_seconds if self.device.type == "cuda" else common.cpu_seconds

    def settings(
        self,
        agents: int,
        steps: int,
        images: int,
        *,
        checkpointing: bool = False,
        gradient_steps: int = 0,
        speed: str = "fused",
    ) -> Settings:
        """Settings of one rollout with `images` per agent, all in one pass.

        With `gradient_steps`, gradients of a reward are followed through that many last steps.
        """
        rule = {"update_rule": "reward_gradient", "gradient_steps": gradient_steps}
        return one_rollout(
            images,
            steps,
            2 * agents * images,
            5.0,
            {"gradient_checkpointing": checkpointing, **(rule if gradient_steps else {})},
            pretrained={"model": self.model, "dtype": self.dtype},
            rewards={"names": ("colorfulness",)},
            evolution={"num_agents": agents},
            speed=speed,
        )

    def rig(self, settings: Settings) -> Rig:
        """Agents on a new model with random weights."""
        pipe = self._pipeline()
        model = FrozenDiffusion(pipe, self.device)
        if settings.train.gradient_checkpointing:
            pipe.unet.enable_gradient_checkpointing()
            pipe.vae.enable_gradient_checkpointing()
        return Rig.make(model, settings, settings.evolution.num_agents)

    def _pipeline(self) -> Any:
        torch.manual_seed(0)
        if self.model != SD15:
            return StableDiffusionPipeline.from_pretrained(self.model, safety_checker=None)
        parts = known_architecture("sd-1.5")
        before = torch.get_default_dtype()
        torch.set_default_dtype(DTYPES[self.dtype])
        try:
            with self.device:
                unet = UNet2DConditionModel.from_config(parts["unet"])
                vae = AutoencoderKL.from_config(parts["vae"])
                text_encoder = CLIPTextModel(CLIPTextConfig(**parts["text_encoder"]))
        finally:
            torch.set_default_dtype(before)
        return StableDiffusionPipeline(
            unet=unet.eval(),
            vae=vae.eval(),
            text_encoder=text_encoder.eval(),
            tokenizer=letter_tokenizer(77),
            scheduler=DDIMScheduler(**sd_scheduler_settings()),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def ceiling(bench: Bench) -> float:
    """FLOP/s of a matrix product in the model's dtype."""
    n = bench.product
    a = torch.randn(n, n, device=bench.device, dtype=DTYPES[bench.dtype])
    measured = common.interleaved({"product": lambda: a @ a}, 5 * bench.rounds, bench.clock)
    return 2 * n**3 / measured["product"].median


def flops_per_image(footprint: Footprint, steps: int) -> dict[str, float]:
    """FLOPs of one guided image: sampled and decoded, trained on at every step, and both."""
    train, decode = 2 * steps * footprint.train_flops, footprint.decode_flops
    sample = 2 * steps * footprint.sample_flops + decode
    return {"sample": sample, "train": train, "single_pass": train + decode}


def throughput(bench: Bench, peak: float) -> dict[str, Any]:
    """Table 4: images per second of six agents, and their share of the ceiling.

    `speed=layers` is measured only with the fewest steps.
    """
    ways = {"layers": [min(bench.steps)], "fused": bench.steps}
    out: dict[str, Any] = {"ready_after_seconds": {}}
    for way, numbers_of_steps in ways.items():
        begun = time.perf_counter()
        rig = bench.rig(bench.settings(AGENTS, FEWEST_STEPS, bench.images, speed=way))
        rig.sample_and_train()
        out["ready_after_seconds"][way] = time.perf_counter() - begun
        out[way] = {str(steps): _speeds(bench, rig, steps, peak) for steps in numbers_of_steps}
        del rig
        release()
    columns = {
        "sample_images_per_s": "sampled [images/s]",
        "train_images_per_s": "trained [images/s]",
        "ceiling_share": "share of the ceiling",
        "single_pass_images_per_s": "both in a single pass [images/s]",
        "single_pass_ceiling_share": "share of the ceiling",
    }
    common.say(f"## Throughput: {AGENTS} agents, {bench.images} images of each in a pass\n")
    common.print_table(
        ["speed", "steps", *columns.values()],
        [
            [way, steps, *(_shown(speeds[name]) for name in columns)]
            for way in ways
            for steps, speeds in out[way].items()
        ],
    )
    return out


def _speeds(bench: Bench, rig: Rig, steps: int, peak: float) -> dict[str, float]:
    """Images per second and shares of the ceiling with `steps` steps, on the agents of a rig."""
    model, agents, speed = rig.sampler.model, rig.agents, rig.settings.speed
    brief, settings = (
        bench.settings(AGENTS, n, bench.images, speed=speed) for n in (FEWEST_STEPS, steps)
    )
    for case in _cases(Rig.make(model, brief, agents)).values():
        case()  # loads kernels and compiles graphs
    cases = _cases(Rig.make(model, settings, agents))
    measured = common.interleaved(cases, bench.rounds, bench.clock, warm_up=False)
    flops = flops_per_image(measure_footprint(settings), steps)
    images = AGENTS * bench.images
    seconds = {what: each.median / images for what, each in measured.items()}
    out = {f"{what}_images_per_s": 1 / value for what, value in seconds.items()}
    both = (flops["sample"] + flops["train"]) / (seconds["sample"] + seconds["train"])
    out["ceiling_share"] = both / peak
    out["single_pass_ceiling_share"] = flops["single_pass"] / seconds["single_pass"] / peak
    sys.stderr.write(f"{steps} steps: {out}\n")  # the table comes at the end
    return out


def _cases(rig: Rig) -> dict[str, Callable[[], object]]:
    return {
        "sample": rig.sample,
        "train": partial(rig.train, rig.sample()),
        "single_pass": rig.in_single_pass().sample_and_train,
    }


def grouped(bench: Bench) -> dict[str, float]:
    """Table 1: six agents in one pass against one after another, with one image each."""
    together, alone = (
        bench.rig(bench.settings(agents, bench.grouped_steps, 1)) for agents in (AGENTS, 1)
    )
    rollouts = together.sample(), alone.sample()

    def in_turn(function: Callable[[], object]) -> None:
        for _ in range(AGENTS):
            function()

    measured = common.interleaved(
        {
            "sample": together.sample,
            "sample in turn": partial(in_turn, alone.sample),
            "train": partial(together.train, rollouts[0]),
            "train in turn": partial(in_turn, partial(alone.train, rollouts[1])),
        },
        bench.rounds,
        bench.clock,
    )
    ratios = {
        what: common.paired_ratio(measured[f"{what} in turn"], measured[what])
        for what in ("sample", "train")
    }
    common.say(f"## {AGENTS} agents together against one after another, one image each\n")
    common.print_table(["", "one after another / together"], list(ratios.items()))
    return {f"grouped_{what}_speedup": ratio for what, ratio in ratios.items()}


def reward_gradients(bench: Bench) -> dict[str, Any]:
    """Table 5: time and memory of six agents along a reward's gradient, one picture of each."""
    out, rows = {}, []
    for last in (1, 3):
        settings = bench.settings(AGENTS, 3, 1, checkpointing=True, gradient_steps=last)
        peak, expected = peak_memory(bench, settings), expected_peak(settings)
        rig = bench.rig(settings)
        update = {"update": partial(rig.train, rig.sample())}
        seconds = common.interleaved(update, bench.rounds, bench.clock)["update"].median / AGENTS
        out[str(last)] = {"update_seconds_per_image": seconds, "gb": peak}
        rows.append([last, seconds, _shown(peak), expected])
        del rig, update
        release()
    common.say(f"## Gradients of rewards: {AGENTS} agents, one picture of each, checkpointed\n")
    common.print_table(["K last steps", "update [s/image]", "peak [GB]", "expected"], rows)
    return {"reward_gradients": out}


def peak_memory(bench: Bench, settings: Settings) -> float | None:
    """Peak memory in GB of one rollout and its update; None on a CPU or if it does not fit."""
    release()
    try:
        rig = bench.rig(settings)
        rig.sample_and_train()
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated() / GB if bench.device.type == "cuda" else None


def expected_peak(settings: Settings) -> float:
    """The dry run's estimate of peak memory in GB."""
    return expected_memory(settings, plan_of(settings, 1), measure_footprint(settings)).peak / GB


def release() -> None:
    """Free unreferenced tensors and reset the peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory(bench: Bench) -> dict[str, Any]:
    """Tables 2 and 3: memory by number of agents, and the most rows within 10 and 24 GB."""
    most, saving = max(bench.agents), partial(bench.settings, steps=FEWEST_STEPS)
    by_agents, rows = {}, []
    for agents in bench.agents:
        settings = saving(agents, images=most // agents, checkpointing=True)
        by_agents[str(agents)] = peak = peak_memory(bench, settings)
        rows.append([agents, _shown(peak), expected_peak(settings)])
    common.say(f"## Memory: {most} images in one pass, checkpointed\n")
    common.print_table(["agents", "peak [GB]", "expected"], rows)
    tried: list[dict[str, Any]] = []
    rows = []
    for images in (1, 2, 4):
        for checkpointing in (False, True):
            settings = saving(AGENTS, images=images, checkpointing=checkpointing)
            peak, expected = peak_memory(bench, settings), expected_peak(settings)
            unet_rows = settings.train.rows_per_pass
            tried.append({"rows": unet_rows, "checkpointing": checkpointing, "gb": peak})
            rows.append([unet_rows, "yes" if checkpointing else "no", _shown(peak), expected])
    common.say(f"## What fits: {AGENTS} agents\n")
    common.print_table(["UNet rows per pass", "checkpointing", "peak [GB]", "expected"], rows)
    out: dict[str, Any] = {"memory_gb": by_agents}
    for budget in (10, 24):
        fits = [each for each in tried if each["gb"] and each["gb"] <= budget]
        out[f"within_{budget}_gb"] = max(fits, key=lambda fit: fit["rows"], default=None)
    return out


def _shown(value: float | None) -> object:
    return "-" if value is None else value


def main() -> None:
    """Print the tables and the headline."""
    parser = common.parser(__doc__, rounds=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            common.pin_to_one_thread()
            save_random_pipeline("small", Path(folder))
            bench = Bench(
                model=folder,
                device=torch.device("cpu"),
                dtype="float32",
                steps=(FEWEST_STEPS,),
                images=1,
                grouped_steps=FEWEST_STEPS,
                agents=(1, 2),
                rounds=1,
                product=256,
            )
        elif torch.cuda.is_available():
            bench = Bench(
                model=SD15,
                device=torch.device("cuda"),
                dtype="bfloat16",
                steps=(50, 20),
                images=4,
                grouped_steps=4,
                agents=(1, 2, 4, 8, 16),
                rounds=arguments.rounds,
                product=8192,
            )
        else:
            raise UserError("benchmarks.gpu needs a CUDA device; without one only --quick runs")
        common.print_header("One GPU")
        peak = ceiling(bench)
        common.say(f"Ceiling: {peak / 1e12:.3g} TFLOP/s, {bench.dtype} matrix product\n")
        headline = {
            "ceiling_tflops": peak / 1e12,
            **throughput(bench, peak),
            **grouped(bench),
            **memory(bench),
            **reward_gradients(bench),
        }
    common.print_headline(headline)


if __name__ == "__main__":
    main()
