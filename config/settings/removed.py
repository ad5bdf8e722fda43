"""Settings that earlier versions had, and what becomes of a run that was made with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from config.settings.derived import patience

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """One setting that is gone.

    Attributes:
        was: the value at which a run did what every run does now.
        instead: what to do without it.
        last: the last version that has it.
        is_harmless: whether any other value changed nothing in what was learnt, or by rounding
            only, so that such a run can be continued, too.
        is_drawn: whether the pictures of finished policies depend on it.
        became: from another value and the settings of its run to settings of today that do the
            same, by their dotted names; None where none does.
    """

    was: Any
    instead: str
    last: str = "commit 7aaf014"
    is_harmless: bool = False
    is_drawn: bool = False
    became: Callable[[Any, Mapping[str, Any]], dict[str, Any] | None] | None = None

    def advice(self, name: str) -> str:
        """The message for a recipe or a command line that sets it."""
        return (
            f"{name} is not a setting any more: {self.instead}; {self.last} is the last version "
            "that has it"
        )

    def today(
        self, value: Any, run: Mapping[str, Any], *, is_finished: bool
    ) -> dict[str, Any] | None:
        """Settings of today that stand for this value; None if the run cannot be continued.

        Args:
            value: that the run had.
            run: its settings by their dotted names.
            is_finished: whether the run is only drawn from.
        """
        if value == self.was:
            return {}
        if self.became and (now := self.became(value, run)) is not None:
            return now
        return {} if self.is_harmless or (is_finished and not self.is_drawn) else None


def _source(part: str, was: str, *more: str) -> Removed:
    """A setting that said where one or more parts of rewards come from."""
    parts = (part, *more)

    def became(value: str, run: Mapping[str, Any]) -> dict[str, Any]:
        given = tuple(run.get("rewards.sources", ()))
        return {"rewards.sources": (*given, *(f"{each}={value}" for each in parts))}

    shown = ",".join(f"{each}=SOURCE" for each in parts)
    return Removed(was=was, instead=f"rewards.sources={shown} replaces it", became=became)


def _pinned(name: str) -> Removed:
    """A setting that said which revision of a hub's model to take, beside the model's own."""

    def became(value: str, run: Mapping[str, Any]) -> dict[str, Any] | None:
        setting = f"pretrained.{name}"
        if name == "model" and str(run.get(setting)).endswith(".safetensors"):
            setting = "pretrained.single_file_config"  # the file itself has no revisions
        pinned = run.get(setting)
        return {setting: f"{pinned}@{value}"} if pinned else None

    instead = f"write it behind the name, pretrained.{name}=NAME@REVISION"
    return Removed(was="", instead=instead, is_drawn=True, became=became)


def _lora_file(value: str, run: Mapping[str, Any]) -> dict[str, Any]:
    return {"pretrained.lora": f"{run.get('pretrained.lora')}/{value}"}


def _tf32(value: bool, run: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - it is True
    return {"pretrained.dtype": "tf32"} if run.get("pretrained.dtype") == "float32" else {}


def _strength(value: float, run: Mapping[str, Any]) -> dict[str, Any] | None:  # noqa: ARG001
    return None if run.get("train.update_rule") == "diffusion_nft" else {}


def _patience(seconds: float, run: Mapping[str, Any]) -> dict[str, Any]:
    waits = patience(run.get("rewards.timeout_seconds", 0.0))
    return {"rewards.timeout_seconds": seconds} if seconds > waits else {}


def _recomputed(value: str, run: Mapping[str, Any]) -> dict[str, Any] | None:
    is_half = run.get("pretrained.dtype") in {"bfloat16", "float16"}
    return {} if value == ("always" if is_half else "never") else None


def _left_out(skipped: int, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Two steps: with "leading" timesteps the first too sensitive one is the last but one."""
    is_leading = run.get("pretrained.timestep_spacing", "") in {"", "leading"}
    return {"train.max_sensitivity": 5.0} if skipped == 2 and is_leading else None


_WITH_96 = "commit d6badcd"  # the last version that has 96 settings
_ADAM = "AdamW has DDPO's constants"
_VIT_L, _VIT_H = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

REMOVED = {
    "adapter.seed": Removed(was=0, instead="all runs begin with the same initial A"),
    "advantage.buffer_size": Removed(
        was=16, instead="the last 16 rewards of a prompt are remembered", last=_WITH_96
    ),
    "advantage.max_advantage": Removed(
        was=5.0, instead="advantages are clipped to +- 5", last=_WITH_96
    ),
    "checkpoint.keep": Removed(was=2, instead="the last two stay", is_harmless=True),
    "checkpoint.max_failures": Removed(
        was=3,
        instead="the third failure in a row to save ends a run",
        is_harmless=True,
    ),
    "evaluation.sample_prompts": Removed(
        was=8, instead="samples.png shows the first 8 prompts", is_harmless=True
    ),
    "evolution.num_directions": Removed(
        was=20, instead="the performance buffer has 20 directions", last=_WITH_96
    ),
    "evolution.num_neighbours": Removed(
        was=12, instead="the prediction model is fitted to 12 records", last=_WITH_96
    ),
    "evolution.predictor": Removed(
        was="scale_free",
        instead="PGMORL's own prediction model is in benchmarks/authors_prediction.py",
    ),
    "evolution.slots_per_direction": Removed(
        was=2, instead="the performance buffer keeps 2 policies along a direction", last=_WITH_96
    ),
    "guards.clip_model": _source("base_similarity.clip", "emoji-clip", "diversity.clip"),
    "guards.max_losses": Removed(
        was=(),
        instead="it is called guards.max_drops",
        became=lambda value, _: {"guards.max_drops": value},
    ),
    "pretrained.channels_last": Removed(
        was=False, instead="speed=fused uses that layout", is_harmless=True
    ),
    "pretrained.compile": Removed(
        was="", instead="speed=fused compiles what gains by it", is_harmless=True
    ),
    "pretrained.crop_top_left": Removed(
        was=(0, 0), instead="SDXL reads that a picture is whole", is_drawn=True
    ),
    "pretrained.fuse": Removed(
        was=False, instead="write speed=fused", became=lambda *_: {"speed": "fused"}
    ),
    "pretrained.lora_file": Removed(
        was="", instead="write pretrained.lora=NAME/FILE", is_drawn=True, became=_lora_file
    ),
    "pretrained.lora_revision": _pinned("lora"),
    "pretrained.original_size": Removed(
        was=(), instead="SDXL reads the size that is drawn", is_drawn=True
    ),
    "pretrained.revision": _pinned("model"),
    "pretrained.tf32": Removed(was=False, instead="write pretrained.dtype=tf32", became=_tf32),
    "pretrained.vae_slicing": Removed(
        was=False,
        instead="pictures of 256 x 256 pixels or more are decoded one at a time, others together",
        last=_WITH_96,
        is_harmless=True,
    ),
    "pretrained.vae_tiling": Removed(
        was=False,
        instead="to save memory, large pictures are decoded one at a time",
        is_drawn=True,
    ),
    "processes.count": Removed(
        was=0,
        instead="a run takes part in as many processes as the launcher starts, and says how many",
        last=_WITH_96,
        is_harmless=True,
    ),
    "processes.timeout_seconds": Removed(
        was=600.0,
        instead="processes wait for one another as long as rewards.timeout_seconds, or 10 minutes",
        last=_WITH_96,
        became=_patience,
    ),
    "rewards.clip_model": _source("clip_alignment.clip", "emoji-clip"),
    "rewards.clip_score_model": _source("clip_score.clip", _VIT_L),
    "rewards.aesthetic_clip": _source("aesthetic_score.clip", _VIT_L),
    "rewards.aesthetic_head": _source(
        "aesthetic_score.head", "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"
    ),
    "rewards.pick_model": _source("pick_score.model", "yuvalkirstain/PickScore_v1"),
    "rewards.pick_processor": _source("pick_score.processor", _VIT_H),
    "rewards.hps_weights": _source("hps_v2.model", "xswu/HPSv2/HPS_v2.1_compressed.pt"),
    "rewards.hps_clip": _source("hps_v2.processor", _VIT_H),
    "rewards.image_reward_weights": _source(
        "image_reward.model", "THUDM/ImageReward/ImageReward.pt"
    ),
    "rewards.image_reward_tokenizer": _source(
        "image_reward.tokenizer", "google-bert/bert-base-uncased"
    ),
    "rewards.remote_attempt_seconds": Removed(
        was=60.0, instead="a request takes at most a minute", is_harmless=True
    ),
    "rewards.remote_encoding": Removed(was="png", instead="pictures travel as PNG, losing nothing"),
    "rewards.remote_retries": Removed(
        was=4, instead="a failure that may pass is tried again four times", is_harmless=True
    ),
    "sample.noisy_steps": Removed(
        was=0,
        instead="fewer sample.num_steps than evaluation.num_steps save more UNet rows",
    ),
    "train.adam_beta1": Removed(was=0.9, instead=f"{_ADAM}, betas of 0.9 and 0.999", last=_WITH_96),
    "train.adam_beta2": Removed(
        was=0.999, instead=f"{_ADAM}, betas of 0.9 and 0.999", last=_WITH_96
    ),
    "train.adam_epsilon": Removed(was=1e-8, instead=f"{_ADAM}, an epsilon of 1e-8", last=_WITH_96),
    "train.best_of": Removed(
        was=1.0, instead="all images are trained; draw fewer of them by sample.images_per_prompt"
    ),
    "train.max_skipped_steps": Removed(
        was=10, instead="an agent may skip 10 steps in a row", is_harmless=True
    ),
    "train.nft_strength": Removed(
        was=1.0, instead="diffusion_nft has the strength 1", became=_strength
    ),
    "train.recompute_log_probs": Removed(
        was="auto",
        instead="they are computed again in half precision; see pretrained.dtype",
        became=_recomputed,
    ),
    "train.skip_last_steps": Removed(
        was=0,
        instead="which steps are left out follows from the schedule; see train.max_sensitivity",
        became=_left_out,
    ),
    "train.step_weighting": Removed(
        was="equal", instead="leave out the most sensitive steps by train.max_sensitivity"
    ),
}


def carried_over(
    given: Mapping[str, Any], *, is_finished: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """The settings of an earlier run as settings of this version.

    Args:
        given: dotted names and values.
        is_finished: whether its policies are only drawn from; what was needed to train them then
            does not matter.

    Returns:
        Dotted names and values of today, and a sentence for each setting that has no equal.
    """
    flat, problems = dict(given), []
    for name in [name for name in REMOVED if name in given]:
        value = flat.pop(name)
        now = REMOVED[name].today(value, flat, is_finished=is_finished)
        if now is not None:
            flat.update(now)
        else:
            problems.append(
                f"{name} was {value!r} in this run and is not a setting any more; "
                f"{REMOVED[name].last} is the last version that has it and can continue the run"
            )
    return flat, problems
