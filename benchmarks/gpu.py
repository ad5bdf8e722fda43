"""Stable Diffusion 1.5 on one GPU: images a second, share of the card's ceiling, memory.

    python -m benchmarks.gpu           # about 8 minutes on a recent card; bfloat16
    python -m benchmarks.gpu --quick   # a small model, on a CPU too: does it still run?

The model has Stable Diffusion 1.5's architecture and random weights, so that nothing is downloaded:
512 x 512 pixels, guidance, six agents. Times are between device events; FLOPs are those of the cost
model (`mo_train.py --dry_run`), which counts UNet and decoder; the ceiling is a matrix product of
the same dtype measured in the same run. Memory is the allocator's peak.

The last line is JSON.
"""

from __future__ import annotations

import gc
import tempfile
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
from config.errors import UserError
from ddpo.dtypes import DTYPES
from ddpo.footprint import known_architecture, measure_footprint
from ddpo.pipeline import FrozenDiffusion

if TYPE_CHECKING:
    from collections.abc import Callable

    from config.schema import Settings
    from ddpo.costs import Footprint

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
AGENTS = 6
GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is measured where.

    Attributes:
        model: a hub id whose architecture is known, or a folder.
        device: of the model.
        dtype: of its frozen parts.
        steps: numbers of denoising steps.
        images: of each agent, where throughput is measured.
        agents: numbers of agents whose memory is measured.
        rounds: figures are medians over these.
        product: rows of the square matrices whose product is the ceiling.
    """

    model: str
    device: torch.device
    dtype: str
    steps: tuple[int, ...]
    images: int
    agents: tuple[int, ...]
    rounds: int
    product: int

    @property
    def clock(self) -> Callable[[Callable[[], object]], float]:
        """Device events, or CPU time."""
        return common.cuda_seconds if self.device.type == "cuda" else common.cpu_seconds

    def settings(self, steps: int, images: int, rows: int, *, checkpointing: bool) -> Settings:
        """Of one rollout of `images` an agent, with at most `rows` UNet rows in a pass."""
        return one_rollout(
            images,
            steps,
            rows,
            5.0,
            {"gradient_checkpointing": checkpointing},
            pretrained={"model": self.model, "dtype": self.dtype},
        )

    def rig(self, agents: int, settings: Settings) -> Rig:
        """Agents on a new model with random weights."""
        model = FrozenDiffusion(self._pipeline(), self.device)
        if settings.train.gradient_checkpointing:
            model.pipe.unet.enable_gradient_checkpointing()
        return Rig.make(model, settings, agents)

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
    """FLOPs of one guided image: sampled with its decoding, trained on at every step, and both."""
    train, decode = 2 * steps * footprint.train_flops, footprint.decode_flops
    sample = 2 * steps * footprint.sample_flops + decode
    return {"sample": sample, "train": train, "single_pass": train + decode}


def throughput(bench: Bench, peak: float) -> dict[str, Any]:
    """Table 1: images a second of six agents, and what share of the ceiling that is."""
    kinds = ("sample", "train", "single_pass")
    out: dict[str, Any] = {f"{kind}_images_per_s": {} for kind in kinds}
    out |= {"ceiling_share": {}, "single_pass_ceiling_share": {}}
    rows = []
    rig = None
    for steps in bench.steps:
        del rig
        release()
        settings = bench.settings(
            steps, bench.images, 2 * AGENTS * bench.images, checkpointing=False
        )
        rig = bench.rig(AGENTS, settings)
        rollout = rig.sample()
        measured = common.interleaved(
            {
                "sample": rig.sample,
                "train": partial(rig.train, rollout),
                "single_pass": rig.in_single_pass().sample_and_train,
            },
            bench.rounds,
            bench.clock,
        )
        flops = flops_per_image(measure_footprint(settings), steps)
        images = AGENTS * bench.images
        seconds = {what: measured[what].median / images for what in flops}
        share = (flops["sample"] + flops["train"]) / (seconds["sample"] + seconds["train"]) / peak
        single_share = flops["single_pass"] / seconds["single_pass"] / peak
        speeds = [1 / seconds[kind] for kind in kinds]
        for kind, speed in zip(kinds, speeds, strict=True):
            out[f"{kind}_images_per_s"][str(steps)] = speed
        out["ceiling_share"][str(steps)] = share
        out["single_pass_ceiling_share"][str(steps)] = single_share
        rows.append([steps, *speeds[:2], share, speeds[2], single_share])
    common.say(f"## Throughput: {AGENTS} agents, {bench.images} images of each in a pass\n")
    common.print_table(
        [
            "steps",
            "sampled [images/s]",
            "trained [images/s]",
            "share of the ceiling",
            "both in a single pass [images/s]",
            "share of the ceiling",
        ],
        rows,
    )
    return out


def grouped(bench: Bench) -> dict[str, float]:
    """Table 2: six agents in one pass against one after another, one image of each."""
    steps = min(bench.steps)
    settings = bench.settings(steps, 1, 2 * AGENTS, checkpointing=False)
    together = bench.rig(AGENTS, settings)
    alone = bench.rig(1, bench.settings(steps, 1, 2, checkpointing=False))
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
    common.say(f"## {AGENTS} agents together against in turn, one image of each\n")
    common.print_table(["", "in turn / together"], list(ratios.items()))
    return {f"grouped_{what}_speedup": ratio for what, ratio in ratios.items()}


def peak_memory(bench: Bench, agents: int, settings: Settings) -> float | None:
    """GB at the peak of one rollout and its update; None on a CPU or where it does not fit."""
    release()
    try:
        rig = bench.rig(agents, settings)
        rig.sample_and_train()
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated() / GB if bench.device.type == "cuda" else None


def release() -> None:
    """Forget what is no longer referred to, and the peak so far."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory(bench: Bench) -> dict[str, Any]:
    """Tables 3 and 4: memory by number of agents, and the largest setting within 10 and 24 GB."""
    most = max(bench.agents)
    by_agents = {
        k: peak_memory(bench, k, bench.settings(1, most // k, 2 * most, checkpointing=True))
        for k in bench.agents
    }
    common.say(f"## Memory: {most} images in one pass, checkpointed\n")
    common.print_table(["agents", "peak [GB]"], [[k, _shown(gb)] for k, gb in by_agents.items()])
    tried: list[dict[str, Any]] = []
    for images in (1, 2, 4):
        for checkpointing in (False, True):
            settings = bench.settings(1, images, 2 * AGENTS * images, checkpointing=checkpointing)
            peak = peak_memory(bench, AGENTS, settings)
            tried.append({"rows": 2 * AGENTS * images, "checkpointing": checkpointing, "gb": peak})
    common.say(f"## What fits: {AGENTS} agents\n")
    common.print_table(
        ["UNet rows a pass", "checkpointing", "peak [GB]"],
        [[t["rows"], "yes" if t["checkpointing"] else "no", _shown(t["gb"])] for t in tried],
    )
    out: dict[str, Any] = {"memory_gb": {str(k): gb for k, gb in by_agents.items()}}
    for budget in (10, 24):
        fits = [(t["gb"], t["rows"], t) for t in tried if t["gb"] and t["gb"] <= budget]
        out[f"within_{budget}_gb"] = min(fits, key=lambda fit: fit[:2])[2] if fits else None
    return out


def _shown(gb: float | None) -> object:
    return "-" if gb is None else gb


def main() -> None:
    """Print the tables and the headline."""
    arguments = common.parser(__doc__, rounds=3).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            common.pin_to_one_thread()
            save_random_pipeline("small", Path(folder))
            bench = Bench(
                model=folder,
                device=torch.device("cpu"),
                dtype="float32",
                steps=(1,),
                images=1,
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
                images=2,
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
        }
    common.print_headline(headline)


if __name__ == "__main__":
    main()
