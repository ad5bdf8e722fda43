"""Checks that the files of a base model are what their names say, before anything is loaded.

Each function returns a sentence per problem: what is wrong, and what to do.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

# Kinds of files, by their first bytes.
_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull` there",
    b"<": "a web page, perhaps a login form or an error: download the file again",
    b"{": "JSON, perhaps an error message: download the file again",
    b"PK\x03\x04": "a pickle under another name, which can run code when read: convert it",
    b"\x80\x02": "a pickle under another name, which can run code when read: convert it",
    b"GGUF": "a GGUF file, whose weights are quantised: use the safetensors file",
}
_TEXTS_BEGIN = {start: words for start, words in _BEGINNINGS.items() if start != b"{"}
_LENGTH_BYTES = 8  # of a safetensors header's own length, in front of it
_LONGEST_HEADER = 100_000_000  # that safetensors reads
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}
_WEIGHTS = {part: "model" if "text" in part else "diffusion_pytorch_model" for part in _CLASSES}
_WHOLE = "give a folder or a checkpoint with UNet, VAE and text encoders"
# The layer that reads the guidance scale; the authors' layout has no name of its own for it.
GUIDANCE = "model.diffusion_model.time_embedding.cond_proj.weight"


def weights_problem(path: Path) -> str | None:
    """The problem of a .safetensors file, judging by its beginning and its size; or None."""
    if not path.is_file():
        return "there is no such file"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(max(map(len, _BEGINNINGS)))
        if not start:
            return "it is empty: download it again"
        length = int.from_bytes(start[:_LENGTH_BYTES], "little")
        if start[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{" or length > _LONGEST_HEADER:
            known = [words for begin, words in _BEGINNINGS.items() if start.startswith(begin)]
            return f"it is {known[0]}" if known else "it does not begin with a safetensors header"
        if _LENGTH_BYTES + length > size:
            return _half(size)
        try:
            file.seek(_LENGTH_BYTES)
            header = json.loads(file.read(length))
            ends = [each["data_offsets"][1] for n, each in header.items() if n != "__metadata__"]
        except (ValueError, KeyError, TypeError):
            return "its header is damaged: download it again"
    expected = _LENGTH_BYTES + length + max(ends, default=0)
    return _half(size, expected) if size < expected else None


def _half(size: int, expected: int | None = None) -> str:
    of = f"of {expected:,} " if expected else ""
    return f"it is the first {size:,} {of}bytes of a file, half a download: download it again"


def text_problem(path: Path) -> str | None:
    """The problem of a text file, or None. A JSON file must hold JSON."""
    if not path.is_file():
        return "there is no such file"
    content = path.read_bytes()
    if not content.strip():
        return "it is empty: download it again"
    for start, words in _TEXTS_BEGIN.items():
        if content.lstrip().startswith(start):
            return f"it is {words}"
    if path.suffix == ".json":
        try:
            json.loads(content)
        except ValueError:
            return "it is damaged: download it again"
    return None


def folder_problems(
    folder: Path,
    text_encoders: Collection[str],
    variant: str,
    *,
    has_vae: bool = False,
    has_weights: bool = False,
) -> Iterator[str]:
    """What keeps a pipeline's folder from being loaded, part by part.

    Args:
        folder: with a `model_index.json`.
        text_encoders: of its family.
        variant: of the weight files.
        has_vae: whether another VAE is given.
        has_weights: whether a checkpoint brings them, and only configurations are needed.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = ["unet", *([] if has_vae else ["vae"]), *text_encoders]
    tokenizers = [part.replace("text_encoder", "tokenizer") for part in text_encoders]
    for part in [*parts, *tokenizers, "scheduler"]:
        kind = (index.get(part) or [None, None])[1]
        if kind is None:
            yield f"model_index.json names no {part}: {_WHOLE}"
        elif not (folder / part).is_dir():
            yield f"it has no folder {part!r}: {_WHOLE}"
        elif part in _CLASSES and kind not in _CLASSES[part]:
            names = " or ".join(_CLASSES[part])
            instead = "; give one as pretrained.vae" if part == "vae" else ""
            yield f"its {part} is of class {kind}, where {names} is needed{instead}"
        elif part in _CLASSES:
            if problem := text_problem(folder / part / "config.json"):
                yield f"{part}/config.json: {problem}"
            if not has_weights:
                yield from _network_problems(folder / part, _WEIGHTS[part], variant)
        elif part in tokenizers:
            yield from _tokenizer_problems(folder / part)
        elif problem := text_problem(folder / part / "scheduler_config.json"):
            yield f"{part}/scheduler_config.json: {problem}"


def _network_problems(folder: Path, stem: str, variant: str) -> Iterator[str]:
    names = [f"{stem}.{variant}", stem] if variant else [stem]
    for name in names:
        if (file := folder / f"{name}.safetensors").is_file():
            files = [file]
        elif (listing := folder / f"{stem}.safetensors.index{name[len(stem) :]}.json").is_file():
            shards = json.loads(listing.read_text(encoding="utf-8"))["weight_map"].values()
            files = [folder / shard for shard in sorted(set(shards))]
        else:
            continue
        for file in files:
            if problem := weights_problem(file):
                yield f"{folder.name}/{file.name}: {problem}"
        return
    yield f"{folder.name} has no weights {names[0]}.safetensors{_other_weights(folder, stem)}"


def _other_weights(folder: Path, stem: str) -> str:
    """A remedy where the weights are there under another name."""
    found = sorted(file.name for file in folder.iterdir())
    for name in found:
        if variant := re.fullmatch(rf"{stem}\.(\w+)\.safetensors", name):
            return f", but {name}; set pretrained.variant={variant[1]}"
    pickles = [name for name in found if name.endswith((".bin", ".ckpt", ".pt"))]
    if pickles:
        return f", but {pickles[0]}, which can run code when read; convert it to safetensors"
    return "; download them"


def _tokenizer_problems(folder: Path) -> Iterator[str]:
    names = ["tokenizer.json"]
    if not (folder / names[0]).is_file():
        names = ["vocab.json", "merges.txt"]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        yield f"its {folder.name} lacks {' and '.join(absent)}, its vocabulary; download them"
        return
    for name in names:
        if problem := text_problem(folder / name):
            yield f"{folder.name}/{name}: {problem}"


def missing_folder(folder: Path) -> str:
    """Why a folder without `model_index.json` is no pipeline."""
    names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    config = _json(folder / "config.json")
    checkpoints = [name for name in names if name.endswith(".safetensors")]
    if not folder.is_dir():
        return "there is no such folder"
    if "adapter_config.json" in names or "pytorch_lora_weights.safetensors" in names:
        return "it is the folder of a LoRA; give it as pretrained.lora, and its base model here"
    if kind := config.get("_class_name") or (config.get("architectures") or [None])[0]:
        return f"it holds a {kind} alone; {_WHOLE}"
    if checkpoints:
        return f"it has no model_index.json; give one of its checkpoints: {', '.join(checkpoints)}"
    return f"it has no model_index.json{'' if names else ', it is empty'}; {_WHOLE}"


def _json(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def checkpoint_problems(path: Path, *, has_vae: bool) -> Iterator[str]:
    """Which parts a checkpoint in its authors' layout lacks.

    Args:
        path: a .safetensors file without `weights_problem`.
        has_vae: whether another VAE is given.
    """
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())

    def has(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if not has("model.diffusion_model.input_blocks."):
        yield _other_kind(has)
        return
    if not has("cond_stage_model.", "conditioner.embedders."):
        yield f"it has no text encoders, perhaps a UNet alone; {_WHOLE}"
    if not has_vae and not has("first_stage_model."):
        yield "it has no VAE; give one as pretrained.vae: file, folder or hub id"


def guidance_width(path: Path) -> int | None:
    """How many numbers a checkpoint's UNet reads the guidance scale as; None if it does not."""
    with safe_open(path, framework="pt") as file:
        if GUIDANCE not in file.keys():  # noqa: SIM118 - not a dict
            return None
        width: int = file.get_slice(GUIDANCE).get_shape()[1]
        return width


def _other_kind(has: Any) -> str:
    """The kind of a file that holds no UNet under its authors' names."""
    if has("lora_", "unet.", "base_model.model.", "transformer."):
        return "it is a LoRA; give it as pretrained.lora, and its base model here"
    if has("down_blocks.", "input_blocks."):
        return f"it is a UNet alone; {_WHOLE}"
    if has("encoder.", "decoder.", "first_stage_model."):
        return "it is a VAE; give it as pretrained.vae, and its base model here"
    return f"it has no weights under model.diffusion_model, as Stable Diffusion has; {_WHOLE}"
