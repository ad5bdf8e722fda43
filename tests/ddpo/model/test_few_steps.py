"""Few-step bases, each of its own make: from a folder, a single file and a LoRA on its base.

All three ways lead to the same UNet and to the schedule that the base was published with.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from safetensors.torch import save_file

from ddpo.ddim import SAMPLERS
from ddpo.model.stable_diffusion import FrozenDiffusion
from run.dry_run import dry_run
from tests.support.original_layout import in_sgm_names, original_state_dict
from tests.support.pipelines import make_tiny_pipe, sd_scheduler
from tests.support.rig import make_rig, make_settings

TRAILING = [999, 749, 499, 249]
DISTILLED = [999, 759, 499, 259]  # of 50 timesteps
SPACED = {"timestep_spacing": "trailing"}
LCM = {"original_inference_steps": 50}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A few-step base as it was published.

    Attributes:
        kind: make of its pipeline.
        scheduler: class that it is drawn with, and what its configuration has that the others of
            Stable Diffusion have not.
        timesteps: of its four steps.
        file: a name that its single file has.
        lora: a name that its LoRA has; "" where there is none.
        source: of `scheduler`; also why there is no LoRA.
        unet: configuration that its base does not have.
    """

    kind: str
    scheduler: tuple[str, dict[str, Any]]
    timesteps: list[int]
    file: str
    lora: str
    source: str
    unet: dict[str, Any] = field(default_factory=dict)

    @property
    def ways(self) -> tuple[str, ...]:
        """How people have it."""
        return ("folder", "file", "lora") if self.lora else ("folder", "file")


# LCM_Dreamshaper's offset is another than usual, and LCM does not read it.
pytestmark = pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")

BASES = {
    "SD-Turbo": Base(
        kind="sd2",
        scheduler=("EulerDiscreteScheduler", SPACED),
        timesteps=TRAILING,
        file="sd_turbo",
        lora="",
        source="stabilityai/sd-turbo, scheduler/scheduler_config.json; no LoRA of it is shared",
    ),
    "SDXL-Turbo": Base(
        kind="sdxl",
        scheduler=("EulerAncestralDiscreteScheduler", SPACED),
        timesteps=TRAILING,
        file="sd_xl_turbo_1.0_fp16",
        lora="shiroppo/sd_xl_turbo_lora/sd_xl_turbo_lora_v1",
        source="stabilityai/sdxl-turbo, scheduler/scheduler_config.json; the LoRA is extracted",
    ),
    "SDXL-Lightning": Base(
        kind="sdxl",
        scheduler=("EulerDiscreteScheduler", SPACED),
        timesteps=TRAILING,
        file="sdxl_lightning_4step",
        lora="ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora",
        source="ByteDance/SDXL-Lightning, README.md (Diffusers Usage)",
    ),
    "Hyper-SDXL": Base(
        kind="sdxl",
        scheduler=("DDIMScheduler", SPACED),
        timesteps=TRAILING,
        file="Juggernaut_X_RunDiffusion_Hyper",
        lora="ByteDance/Hyper-SD/Hyper-SDXL-4steps-lora",
        source="ByteDance/Hyper-SD, README.md (2-Steps, 4-Steps, 8-steps LoRA)",
    ),
    "Hyper-SD15": Base(
        kind="sd1",
        scheduler=("DDIMScheduler", SPACED),
        timesteps=TRAILING,
        file="realisticVisionV60B1_v51HyperVAE",
        lora="ByteDance/Hyper-SD/Hyper-SD15-4steps-lora",
        source="ByteDance/Hyper-SD, README.md (2-Steps, 4-Steps, 8-steps LoRA)",
    ),
    "LCM of SD 1.5": Base(
        kind="sd1",
        scheduler=("LCMScheduler", LCM),
        timesteps=DISTILLED,
        file="DreamShaper8_LCM",
        lora="latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights",
        source="latent-consistency/lcm-lora-sdv1-5, README.md",
    ),
    "LCM of SDXL": Base(
        kind="sdxl",
        scheduler=("LCMScheduler", LCM),
        timesteps=DISTILLED,
        file="dreamshaperXL_lcm",
        lora="latent-consistency/lcm-lora-sdxl/pytorch_lora_weights",
        source="latent-consistency/lcm-lora-sdxl, README.md",
    ),
    "LCM_Dreamshaper": Base(
        kind="sd1",
        scheduler=("LCMScheduler", {**LCM, "set_alpha_to_one": True, "steps_offset": 0}),
        timesteps=DISTILLED,
        file="dreamshaper_v7_distilled",  # the layer tells what its name does not
        lora="",
        source="SimianLuo/LCM_Dreamshaper_v7, scheduler/scheduler_config.json; no LoRA has a layer "
        "that its base lacks",
        unet={"time_cond_proj_dim": 8},
    ),
}
WAYS = [(name, way) for name, base in BASES.items() for way in base.ways]


def published(base):
    """The scheduler of diffusers that a base is drawn with."""
    name, changes = base.scheduler
    return getattr(diffusers, name).from_config(sd_scheduler().config, **changes)


def lora_of(pipe):
    """Layer -> (down, up), of the UNet's attention."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (
            torch.randn(2, layer.in_features, generator=generator) / 4,
            torch.randn(layer.out_features, 2, generator=generator) / 4,
        )
        for name, layer in pipe.unet.named_modules()
        if name.endswith(("attn1.to_q", "attn2.to_v"))
    }


@pytest.fixture(scope="module", name="plain")
def _plain(tmp_path_factory):
    """kind -> folder of a base that takes many steps, at leading timesteps."""
    root = tmp_path_factory.mktemp("plain")
    for kind in {base.kind for base in BASES.values()}:
        pipe = make_tiny_pipe(kind)
        pipe.scheduler = sd_scheduler()
        pipe.save_pretrained(root / kind)
    return root


@pytest.fixture(scope="module", name="made")
def _made(tmp_path_factory, plain):
    """name -> weights of the UNet; settings of `pretrained` for each way to it."""
    root, made = tmp_path_factory.mktemp("made"), {}
    for name, base in BASES.items():
        pipe = make_tiny_pipe(base.kind, **base.unet)
        lora, folder = lora_of(pipe), root / name
        for layer, (down, up) in lora.items():
            pipe.unet.get_submodule(layer).weight.data += up @ down
        state = original_state_dict(pipe)
        config = str(plain / base.kind)
        ways = {
            "folder": {"model": str(folder / "folder")},
            "file": {
                "model": str(folder / f"{base.file}.safetensors"),
                "single_file_config": config,
            },
            "lora": {"model": config, "lora": str(root / f"{base.lora}.safetensors")},
        }
        pipe.scheduler = published(base)
        if base.unet:
            parts = {**pipe.components, "requires_safety_checker": False}
            pipe = LatentConsistencyModelPipeline(**parts)
        pipe.save_pretrained(ways["folder"]["model"])
        save_file(in_sgm_names(state) if base.kind == "sd2" else state, ways["file"]["model"])
        if base.lora:
            (root / base.lora).parent.mkdir(parents=True, exist_ok=True)
            factors = {
                f"unet.{layer}.lora_{end}.weight": factor
                for layer, (down, up) in lora.items()
                for end, factor in (("A", down), ("B", up))
            }
            save_file(factors, ways["lora"]["lora"])
        made[name] = pipe.unet.state_dict(), ways
    return made


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_a_few_step_base_is_read_whole_and_gets_the_schedule_it_was_published_with(
    made, name, way, caplog
):
    base, (weights, ways) = BASES[name], made[name]
    settings = make_settings(
        pretrained=ways[way],
        sample={"num_steps": 4},
        rewards={"names": ("colorfulness", "jpeg_compressibility")},
    )
    with caplog.at_level(logging.INFO):
        model = FrozenDiffusion.load(settings.pretrained)
    read = model.unet.state_dict()
    assert read.keys() == weights.keys()
    for layer, weight in weights.items():
        torch.testing.assert_close(read[layer], weight)
    expected = published(base)
    expected.set_timesteps(4)
    assert expected.timesteps.long().tolist() == base.timesteps
    schedule = model.schedule(settings.sample)
    assert schedule.timesteps.tolist() == base.timesteps
    torch.testing.assert_close(schedule.alpha_bar, expected.alphas_cumprod[base.timesteps])
    assert schedule.prediction_type == expected.config.prediction_type == "epsilon"
    is_lcm = base.scheduler[0] == SAMPLERS["lcm"]
    assert schedule.sampler == ("lcm" if is_lcm else "ddim")
    (taken,) = [line for line in caplog.messages if " is taken for " in line]
    assert ("LCM's timesteps" if is_lcm else "trailing timesteps") in taken
    assert ("that reads its guidance scale" in taken) == bool(base.unet)
    report = dry_run(settings)
    assert f"  {taken}\n" in report
    steps = ", ".join(map(str, base.timesteps))
    assert f"drawn by {schedule.sampler} in 4 steps, at {steps}" in report


def test_a_file_whose_unet_reads_the_guidance_scale_draws_as_its_folder(made):
    _, ways = made["LCM_Dreamshaper"]
    images = []
    for way in ("folder", "file"):
        settings = make_settings(pretrained=ways[way])
        rig = make_rig(
            1, FrozenDiffusion.load(settings.pretrained).pipe, sample={"guidance_scale": 8.5}
        )
        images.append(rig.rollout(rig.batch(1, 1)).images)
        assert rig.agents.take_num_rows() == 4  # one per step
    torch.testing.assert_close(*images)
