"""The Python code of a model card: in plain diffusers it draws exactly what was judged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpo.assets import EMBEDDED_MODELS
from ddpo.ddim import SAMPLERS
from ddpo.model.source import repository_and_file, source_of
from front.record import ModelRecord
from run.samples import read_samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from front.front import Front

_WIDTH = 120  # of a line of code, at most
_EMBEDDED = "ddpo/assets/"  # in the project's repository
# Parts that diffusers loads by default. They change pictures, and training did without them.
_LEFT_OUT: Mapping[str, Mapping[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}
_PARTS = {
    "StableDiffusionPipeline": ["unet", "text_encoder"],
    "StableDiffusionXLPipeline": ["unet", "text_encoder", "text_encoder_2"],
}


class _Code(str):
    """Code, where other texts become literals."""

    __slots__ = ()


def drawing_code(
    front: Front,
    folder: str,
    *,
    is_sdxl: bool,
    **where: str,
) -> str:
    """Code that draws the first sample of an adapter, with the base model as it was.

    Args:
        front: the adapter is from.
        folder: of the adapter, or its repository on a hub.
        is_sdxl: whether the adapter is for SDXL; asked where the run did not note its model.
        where: further arguments of `load_lora_weights`.

    Returns:
        Lines of Python.
    """
    model = front.model or _model_of_old_run(front, is_sdxl=is_sdxl)
    pretrained = front.settings["pretrained"]
    kind = SAMPLERS[model.sampler]
    imports = [kind, model.pipeline]
    lines = list(_loading(model, pretrained))
    if vae := pretrained.get("vae"):
        imports.insert(0, "AutoencoderKL")
        lines.append(f"pipe.vae = {_vae(vae, pretrained)}")
    unclipped = {} if model.sampler == "euler_a" else {"clip_sample": False, "thresholding": False}
    scheduler = _call(
        f"{kind}.from_config",
        _Code("pipe.scheduler.config"),
        **unclipped,
        **model.schedule,
    )
    lines.append(f"pipe.scheduler = {scheduler}")
    if pretrained.get("lora"):
        lines += _merging(model, pretrained)
    lines.append(_call("pipe.load_lora_weights", folder, **where))
    lines.append(f"image = {_drawing(front, model)}")
    head = ["import torch", f"from diffusers import {', '.join(imports)}", ""]
    return "\n".join([*head, *lines]).replace("```", "\\x60``")


def local_names(front: Front) -> list[str]:
    """Files and folders of the machine that trained: the code loads them, and no hub has them."""
    model = front.model
    pretrained = front.settings["pretrained"]
    names = [pretrained["model"], model.config if model else "", pretrained.get("vae", "")]
    names.append(pretrained.get("lora", ""))
    return [shared_name(name) for name in names if name and not is_on_hub(source_of(name).name)]


def is_on_hub(name: str) -> bool:
    """Whether a setting names a repository of a hub, or a file of one."""
    parts = name.split("/")
    is_file = len(parts) < 3 and name.endswith(".safetensors")
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)+", name) and parts[0] not in {".", "..", "~"}
    return bool(is_name) and not is_file and not Path(name).exists()


def shared_name(name: str) -> str:
    """A name as others may read it: only the last part of a path on this machine."""
    if name in EMBEDDED_MODELS:
        return _EMBEDDED + name
    return name if is_on_hub(name) else Path(name).name


def _model_of_old_run(front: Front, *, is_sdxl: bool) -> ModelRecord:
    """The model of a run that did not note it, as far as it can be inferred."""
    settings = front.settings["pretrained"]
    height, width = settings.get("height", 0), settings.get("width", 0)
    pictures = read_samples(front.path, "report", "base", len(front.sample_prompts))
    if (height or width) and pictures:
        width, height = pictures[0].size
    return ModelRecord(
        pipeline="StableDiffusionXLPipeline" if is_sdxl else "StableDiffusionPipeline",
        height=height,
        width=width,
        schedule={},
        config=shared_name(settings.get("single_file_config", "")),
    )


def _loading(model: ModelRecord, pretrained: Mapping[str, Any]) -> Iterator[str]:
    """How the base model is loaded: a folder, a repository or one file."""
    source = source_of(pretrained["model"])
    is_file = source.name.endswith(".safetensors")
    arguments: dict[str, Any] = {"revision": source.revision}
    arguments |= {"variant": pretrained.get("variant"), "config": model.config if is_file else ""}
    if (dtype := pretrained.get("dtype", "float32")) in {"bfloat16", "float16"}:
        arguments["torch_dtype"] = _Code(f"torch.{dtype}")
    given = {name: value for name, value in arguments.items() if value}
    how = "from_single_file" if is_file else "from_pretrained"
    name = shared_name(source.name)
    if not model.has_plain_unet:
        yield "# diffusers would leave out a layer of this UNet; this is the code of the project."
        yield "from ddpo.model.loading import guided_unet"
        yield ""
        dtypes = [given["torch_dtype"]] if "torch_dtype" in given else []
        yield "unet = " + _call("guided_unet", name, model.config, *dtypes)
        given["unet"] = _Code("unet")
    yield "pipe = " + _call(f"{model.pipeline}.{how}", name, **given, **_LEFT_OUT[model.pipeline])


def _vae(vae: str, pretrained: Mapping[str, Any]) -> str:
    source = source_of(vae)
    how = "from_single_file" if source.name.endswith(".safetensors") else "from_pretrained"
    arguments: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    if (dtype := pretrained.get("dtype", "float32")) in {"bfloat16", "float16"}:
        arguments["torch_dtype"] = _Code(f"torch.{dtype}")
    return _call(f"AutoencoderKL.{how}", shared_name(source.name), **arguments)


def _merging(model: ModelRecord, pretrained: Mapping[str, Any]) -> Iterator[str]:
    """How the LoRA gets into the base model; by the project's own code where diffusers differs."""
    source = source_of(pretrained["lora"])
    scale = pretrained.get("lora_scale", 1.0)
    name, file = repository_and_file(source.name)
    if not is_on_hub(source.name):
        name, file = shared_name(source.name), None
    if not model.has_plain_lora:
        yield "# diffusers merges this LoRA differently; this is the code of the project."
        yield "from ddpo.model.lora_file import LoraFile, locate, merge"
        yield ""
        found = _call("locate", name, file, source.revision)
        yield f"merge(pipe, LoraFile.read({found}), {scale})"
        return
    where = {"weight_name": file, "revision": source.revision}
    given = {key: value for key, value in where.items() if value}
    yield _call("pipe.load_lora_weights", name, **given)
    yield _call("pipe.fuse_lora", components=_PARTS[model.pipeline], lora_scale=scale)
    yield "pipe.unload_lora_weights()"


def _drawing(front: Front, model: ModelRecord) -> str:
    """The call that draws the first sample."""
    sample = front.settings["sample"]
    steps = front.settings.get("evaluation", {}).get("num_steps") or sample["num_steps"]
    sampler = {
        "num_inference_steps": steps,
        "guidance_scale": sample["guidance_scale"],
        "eta": sample["eta"],
    }
    optional = {
        "negative_prompt": sample.get("negative_prompt"),
        "guidance_rescale": sample.get("guidance_rescale"),
        "clip_skip": front.settings["pretrained"].get("clip_skip"),
        "height": model.height,
        "width": model.width,
    }
    sampler |= {name: value for name, value in optional.items() if value}
    prompt = front.sample_prompts[0] if front.sample_prompts else "your prompt"
    seed = front.sample_seeds[0] if front.sample_seeds else 0
    return "\n".join(
        [
            "pipe(",
            f"    {_literal(prompt)},",
            f"    {_arguments(**sampler)},",
            f"    generator=torch.Generator().manual_seed({seed}),",
            ").images[0]",
        ]
    )


def _call(function: str, *args: Any, **kwargs: Any) -> str:
    """A call on one line, or on several if it is long."""
    values = [*map(_literal, args)] + ([_arguments(**kwargs)] if kwargs else [])
    line = f"{function}({', '.join(values)})"
    if len(line) <= _WIDTH:
        return line
    values = [*map(_literal, args), *(_arguments(**{k: v}) for k, v in kwargs.items())]
    return f"{function}(\n" + "".join(f"    {value},\n" for value in values) + ")"


def _arguments(**kwargs: Any) -> str:
    return ", ".join(f"{name}={_literal(value)}" for name, value in kwargs.items())


def _literal(value: Any) -> str:
    if isinstance(value, _Code):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return repr(value)
