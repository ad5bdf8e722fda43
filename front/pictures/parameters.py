"""The settings of a picture, as the text that AUTOMATIC1111's web UI reads from a PNG file.

Its form, from `modules/infotext_utils.py` there: the prompt, a line `Negative prompt: ...` if there
is one, and last a line of `Name: value` pairs, a value with a comma, colon or line break as a JSON
string. Names that it does not know, such as our `Policy`, are shown and otherwise ignored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL.PngImagePlugin import PngInfo

from ddpo.model.source import source_of
from front.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL import Image

    from config.base import SampleSettings
    from front.front import Front
    from front.member import Blend, FrontPolicy

KEY = "parameters"  # of the text in the file
# Spacing -> its name as the scheduler of ComfyUI, and as the schedule type of A1111 and Forge.
_SCHEDULES = {
    "leading": ("ddim_uniform", "DDIM"),
    "trailing": ("sgm_uniform", "SGM Uniform"),
    "linspace": ("normal", "Normal"),
}
# Sampler -> its names there. ComfyUI has no TCD, but its steps at gamma 1 are LCM's.
_DISTILLED = {"lcm": ("lcm", "LCM"), "tcd": ("lcm", "TCD")}


class Elsewhere(NamedTuple):
    """The names of the run's sampler in ComfyUI, and in A1111 and Forge.

    Attributes:
        sampler: its two names.
        schedule: the two names of its spacing; None where the spacing has no name.
        is_distilled: whether it is LCM's or TCD's.
    """

    sampler: tuple[str, str]
    schedule: tuple[str, str] | None
    is_distilled: bool


def elsewhere(front: Front) -> Elsewhere:
    """The names of a run's sampler in other programs."""
    own = front.model.sampler if front.model else ""
    is_distilled = own in _DISTILLED
    schedule = front.model.schedule if front.model else {}
    spacing = "trailing" if is_distilled else schedule.get("timestep_spacing", "")
    # Euler a takes the steps of DDIM with the same eta.
    sampler = _DISTILLED.get(own, ("euler_ancestral", "Euler a"))
    return Elsewhere(sampler, _SCHEDULES.get(spacing), is_distilled)


def arguments_of(sample: SampleSettings) -> dict[str, Any]:
    """The sampler's settings as arguments of a pipeline."""
    return {
        "num_inference_steps": sample.num_steps,
        "guidance_scale": sample.guidance_scale,
        "guidance_rescale": sample.guidance_rescale,
        "eta": sample.eta,
        "negative_prompt": sample.negative_prompt,
    }


def sampler_of(front: Front, **changes: Any) -> dict[str, Any]:
    """How the run's policies were judged, as arguments of a pipeline, with other values for some.

    Args:
        front: of the run.
        changes: under diffusers' names.
    """
    return {**arguments_of(settings_of(front).evaluation_sample), **changes}


def describe(
    picture: Image.Image,
    front: Front,
    member: FrontPolicy | Blend | None,
    prompt: str,
    seed: int,
    sampler: Mapping[str, Any],
) -> Image.Image:
    """The picture, carrying what it was drawn from wherever it is saved as PNG.

    Args:
        picture: drawn.
        front: of the run.
        member: the policy or blend that drew it; None for the base model.
        prompt: of the picture.
        seed: of the picture.
        sampler: see `sampler_of`.
    """
    pretrained = settings_of(front).pretrained
    names = elsewhere(front)
    pairs: dict[str, Any] = {
        "Steps": sampler["num_inference_steps"],
        "Sampler": names.sampler[1],
        "CFG scale": f"{sampler['guidance_scale']:g}",
        "Seed": seed,
        "Size": f"{picture.width}x{picture.height}",
        "Model": Path(source_of(pretrained.model).name).stem,
        "RNG": "CPU",
    }
    if names.schedule:
        pairs["Schedule type"] = names.schedule[1]
    if sampler["eta"] != 1:
        pairs["Eta"] = f"{sampler['eta']:g}"
    if pretrained.clip_skip:
        pairs["Clip skip"] = pretrained.clip_skip + 1
    pairs["Policy"] = "base model" if member is None else member.id
    if member is not None:
        weights = zip(front.names, member.weights, strict=True)
        pairs["Policy weights"] = ", ".join(f"{name} {weight:.2f}" for name, weight in weights)
        if len(member.parts) > 1:
            parts = (f"{policy.id} {part:.2f}" for policy, part in member.parts)
            pairs["Policy parts"] = ", ".join(parts)
    lines = [prompt]
    if negative := sampler["negative_prompt"]:
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in pairs.items()))
    picture.info[KEY] = "\n".join(lines)
    return picture


def _quoted(value: str) -> str:
    needs_it = any(character in value for character in ',:\n"')
    return json.dumps(value, ensure_ascii=False) if needs_it else value


def png_text(picture: Image.Image) -> PngInfo:
    """What `describe` has noted, for `Image.save(..., pnginfo=...)`."""
    info = PngInfo()
    if text := picture.info.get(KEY):
        info.add_text(KEY, text)
    return info
