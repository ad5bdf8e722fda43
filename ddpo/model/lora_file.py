"""LoRAs that other people made: where one lies, what it changes, and its merge into a model.

It reads the formats of diffusers, PEFT, kohya's sd-scripts and LyCORIS.

    W  <-  W + strength (alpha / rank) B A        (Hu et al. 2022, eq. 3)

Every layer is merged with its own alpha and rank, because files of other programs may mix them.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import safe_open
from torch import nn

from ddpo.layer_names import original_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_PEFT_CONFIG = "adapter_config.json"  # beside the weights
_TAKEN = "LoRA, also of convolutions and with DoRA's magnitudes, LoHa and LoKr"
# The tensors stored for a layer, by the ends of their names.
_LORA = {
    "down": r"\.lora_A(\.\w+)?\.weight|\.lora_down\.weight|[._]lora(_linear_layer)?\.down\.weight",
    "up": r"\.lora_B(\.\w+)?\.weight|\.lora_up\.weight|[._]lora(_linear_layer)?\.up\.weight",
    "mid": r"\.lora_mid\.weight",
    "magnitude": r"\.lora_magnitude_vector(\.\w+)*",
}
_OTHERS = "alpha dora_scale hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2 lokr_w1 "
_OTHERS += "lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2"
_ENDINGS = _LORA | {name: rf"\.{name}" for name in _OTHERS.split()}
_KEY = re.compile("(.+?)(?:" + "|".join(f"(?P<{n}>{end})" for n, end in _ENDINGS.items()) + ")")
# Prefixes of the names of layers.
_PREFIXES = {
    "unet": ("unet.", "lora_unet_", "lycoris_", "diffusion_model.", "model.diffusion_model.", ""),
    "text_encoder": ("text_encoder.", "lora_te_", "lora_te1_", ""),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_", ""),
}
_UNET_STARTS = ("unet.", "lora_unet_")
_OLD_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_TEXT_WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL's refiner", 2048: "SDXL"}
_TRANSFORMERS = re.compile(r"double_blocks|single_blocks|joint_blocks|^(lora_)?transformer_")
# PEFT's initialisations that change the base model, too.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


def locate(name: str, file: str | None, revision: str | None) -> Path:
    """The one LoRA file that is meant, on this machine; downloaded if a hub has it.

    Args:
        name: a file, a folder or a hub's repository.
        file: of the repository; None if it holds one.
        revision: of the repository.

    Raises:
        ValueError: if a folder or repository holds several, or none.
        OSError: if it cannot be found or downloaded.
    """
    path = Path(name)
    if path.is_dir():
        return path / _only([each.name for each in path.iterdir()], f"{name}/")
    if path.exists():
        return path
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise FileNotFoundError("there is no such file or folder") from None
    file = file or _only(_repository_files(name, revision), f"{name}/")
    config = str(Path(file).with_name(_PEFT_CONFIG))
    path = Path(_snapshot(name, revision, allow_patterns=[file, config]), file)
    if not path.is_file():
        raise FileNotFoundError(f"the repository {name} has no {file}")
    return path


def _only(names: Iterable[str], place: str) -> str:
    """The one safetensors file among these."""
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if len(files) != 1:
        what = f"{len(files)} .safetensors files"
        which = f": {', '.join(files)}; name one, as {place}{files[0]}" if files else ""
        raise ValueError(f"it holds {what}, and one is merged{which}")
    return files[0]


def _repository_files(name: str, revision: str | None) -> list[str]:
    """Files at the top of a repository; without a network, the cached ones."""
    try:
        files = [found.filename for found in _snapshot(name, revision, dry_run=True)]
        return [file for file in files if "/" not in file]
    except DryRunError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise error.__cause__ from None
        only = {"local_files_only": True, "allow_patterns": ["*.safetensors"]}
        return [path.name for path in Path(_snapshot(name, revision, **only)).iterdir()]


def _snapshot(name: str, revision: str | None, **options: Any) -> Any:
    """See `snapshot_download`, which does not retry for half a minute without a network."""
    try:
        return snapshot_download(name, revision=revision, **options)
    except (OSError, ValueError):
        raise
    except Exception as error:  # depends on the HTTP client that the hub's library is built on
        raise LocalEntryNotFoundError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoraFile:
    """What a LoRA file holds.

    Attributes:
        layers: a layer's name in the file -> what is stored of it, by the names of `_ENDINGS`.
        configs: PEFT's configuration of each part of the pipeline, or of all ("").
    """

    layers: Mapping[str, Mapping[str, torch.Tensor]]
    configs: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> LoraFile:
        """Read a file, and the configuration that PEFT wrote beside it.

        Raises:
            ValueError: if it holds no LoRA, or other things as well.
        """
        layers: dict[str, dict[str, torch.Tensor]] = {}
        others = []
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - not a dict, and cannot be iterated over
                if found := _KEY.fullmatch(key):
                    stored = found.lastgroup or ""
                    layers.setdefault(found[1], {})[stored] = file.get_tensor(key)
                else:
                    others.append(key)
        if others:
            raise ValueError(
                f"{len(others)} of its {sum(map(len, layers.values())) + len(others)} entries "
                f"cannot be merged here, the first is {others[0]!r}; supported are {_TAKEN}. Merge "
                "it into a checkpoint with the program that it is for, and give that as "
                "pretrained.model"
            )
        configs = _configs(metadata, path.with_name(_PEFT_CONFIG))
        return cls(layers=layers, configs=configs)

    @property
    def is_plain(self) -> bool:
        """Whether diffusers merges it as `merge` does: one rank, one alpha, names it knows."""
        kinds = {
            (frozenset(stored), stored["down"].shape[0], float(stored.get("alpha", math.nan)))
            if stored.keys() <= {"down", "up", "alpha"} and stored["down"].ndim == 2
            else None
            for stored in self.layers.values()
        }
        in_text = [_flat(layer) for layer in self.layers if not layer.startswith(_UNET_STARTS)]
        patterns = ("rank_pattern", "alpha_pattern", "use_rslora")
        return (
            len(kinds) == 1
            and None not in kinds
            and "" not in self.configs
            and not any(config.get(name) for config in self.configs.values() for name in patterns)
            and all(name.startswith(("text_encoder_", "lora_te")) for name in in_text)
            # by these layers diffusers recognises a file for text encoders
            and (not in_text or any(name.endswith(("out_proj", "to_out")) for name in in_text))
        )

    def scale(self, layer: str, part: str, place: str, rank: int | None) -> float | None:
        """A layer's strength, alpha / rank; None if nothing says what alpha is.

        Args:
            layer: its name in the file.
            part: of the pipeline.
            place: its name there.
            rank: None for a product without a rank; only PEFT then gives its alpha a meaning.
        """
        config = self.configs.get(part) or self.configs.get("") or {}
        rank = rank or config.get("r")
        if rank is None:
            return 1.0
        if "alpha" in self.layers[layer]:
            return float(self.layers[layer]["alpha"]) / rank
        alpha = config.get("lora_alpha", config.get("alpha"))
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", place):
                alpha = value
                break
        if alpha is None:
            return None
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _configs(metadata: Mapping[str, str], beside: Path) -> dict[str, dict[str, Any]]:
    """PEFT's configurations, as diffusers writes them into a file and PEFT beside it."""
    configs: dict[str, dict[str, Any]] = {}
    for name, value in json.loads(metadata.get("lora_adapter_metadata", "{}")).items():
        part, _, field = name.partition(".")
        configs.setdefault(part, {})[field] = value
    if not configs and beside.is_file():
        configs[""] = json.loads(beside.read_text(encoding="utf-8"))
    for config in configs.values():
        begun = str(config.get("init_lora_weights")).lower()
        if begun.startswith(_CHANGES_BASE):
            raise ValueError(
                f"its training began with init_lora_weights={begun!r}, which changes the base "
                "model as well; convert it to a plain LoRA with PEFT's "
                "path_initial_model_for_weight_conversion"
            )
    return configs


def merge(pipe: Any, lora: LoraFile, strength: float) -> tuple[int, int]:
    """Add a LoRA to the weights of UNet and text encoders, for good.

    Args:
        pipe: on the CPU.
        lora: what to add.
        strength: 1 as it was trained.

    Returns:
        The number of layers changed, and how many of them have no known alpha. Those were merged
        with alpha = rank, as other programs do.

    Raises:
        ValueError: if it has no layers, does not fit, or changes nothing.
    """
    num_without_alpha, is_changed = 0, False
    found = _find_layers(pipe, lora)
    for layer, where in found.items():
        # The update, and its strength.
        stored = {name: tensor.float() for name, tensor in lora.layers[layer].items()}
        try:
            update, rank = _update(stored)
        except KeyError as error:
            raise ValueError(f"{layer!r} has no {error}: a part of the file is missing") from error
        except RuntimeError as error:
            raise ValueError(f"the factors of {layer!r} do not fit each other") from error
        scale = lora.scale(layer, *where, rank)
        if scale is None:
            num_without_alpha += 1
            scale = 1.0
        # Added to the layer's weight.
        weight = getattr(pipe, where[0]).get_submodule(where[1]).weight
        old = weight.data.float()
        if update.flatten(1).shape != old.flatten(1).shape:
            raise ValueError(_misfit(pipe, lora, [layer], "has another size"))
        new = _merged(old, update.reshape(old.shape), stored, scale, strength)
        if not new.isfinite().all():
            raise ValueError(f"{layer!r} has values that are not finite: the file is damaged")
        is_changed = is_changed or not torch.equal(new, old)
        weight.data = new.to(weight.dtype)
    if strength and not is_changed:
        raise ValueError("it changes nothing: all of its output matrices are zero")
    return len(found), num_without_alpha


def _find_layers(pipe: Any, lora: LoraFile) -> dict[str, tuple[str, str]]:
    """A layer's name in the file -> the part of the pipeline, its name there; each place once."""
    if not lora.layers:
        raise ValueError(f"it holds no layers of a kind that is merged here ({_TAKEN})")
    places = _places(pipe)
    found = {layer: places.get(_flat(layer), []) for layer in lora.layers}
    if lost := [layer for layer, where in found.items() if not where]:
        raise ValueError(_misfit(pipe, lora, lost, "does not"))
    if either := [layer for layer, where in found.items() if len(where) > 1]:
        raise ValueError(
            f"both text encoders have a layer {either[0]!r}; begin the names in the file with "
            "text_encoder. or text_encoder_2."
        )
    first: dict[tuple[str, str], str] = {}
    for layer, [where] in found.items():
        other = first.setdefault(where, layer)
        if layer != other and not _are_equal(lora.layers[layer], lora.layers[other]):
            raise ValueError(f"it has two updates of one layer, {other!r} and {layer!r}")
    return {layer: where for where, layer in first.items()}


def _are_equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def _flat(name: str) -> str:
    """A name with underscores for dots, and without the additions of older programs."""
    name = name.removeprefix("base_model.model.").replace(".processor.", ".")
    return name.replace(".", "_")


def _places(pipe: Any) -> dict[str, list[tuple[str, str]]]:
    """Every name that a layer may have in a file -> the part of the pipeline, the layer there."""
    places: dict[str, list[tuple[str, str]]] = {}
    for part, prefixes in _PREFIXES.items():
        network = getattr(pipe, part, None)
        if network is None:
            continue
        names = [n for n, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        original = original_names(names) if part == "unet" else {}
        for place in names:
            known = {place, original.get(place, place)}
            known |= set(_unet_names(place) if part == "unet" else _text_names(place))
            for name in {_flat(prefix + name) for prefix in prefixes for name in known}:
                places.setdefault(name, []).append((part, place))
    return places


def _unet_names(place: str) -> Iterator[str]:
    if place.endswith(".to_out.0"):
        yield place.removesuffix(".0")


def _text_names(place: str) -> Iterator[str]:
    """Names with and without the level that text encoders had before transformers 5."""
    short = place.removeprefix("text_model.")
    for name in (short, f"text_model.{short}"):
        yield name
        for old, new in _OLD_PROJECTIONS.items():
            if name.endswith(f".{new}"):
                yield f"{name.removesuffix(new)}{old}"


def _update(stored: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, int | None]:
    """The update of a weight before its strength, (out, in, ...), and its rank."""
    if any(name.startswith("hada") for name in stored):
        first, second = (
            _product(stored[f"hada_w{i}_a"], stored[f"hada_w{i}_b"], stored.get(f"hada_t{i}"))
            for i in (1, 2)
        )
        return first * second, len(stored["hada_w1_b"])
    if any(name.startswith("lokr") for name in stored):
        return _kronecker(stored)
    down, up = stored["down"], stored["up"]
    if "mid" in stored:  # a convolution as three
        up = up.flatten(1).T
    return _product(up, down, stored.get("mid")), len(down)


def _product(a: torch.Tensor, b: torch.Tensor, core: torch.Tensor | None = None) -> torch.Tensor:
    """A B for A (out, rank), B (rank, in, ...); with a core (rank, rank, ...), A is (rank, out)."""
    if core is not None:
        product: torch.Tensor = torch.einsum("ro,rs...,si->oi...", a, core, b.flatten(1))
        return product
    product = a.flatten(1) @ b.flatten(1)
    return product.reshape(len(a), *b.shape[1:])


def _kronecker(stored: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, int | None]:
    """LoKr's update (Yeh et al. 2024): a Kronecker product of matrices or low-rank products."""
    factors, rank = [], None
    for i in (1, 2):
        if f"lokr_w{i}" in stored:
            factors.append(stored[f"lokr_w{i}"])
            continue
        b = stored[f"lokr_w{i}_b"]
        factors.append(_product(stored[f"lokr_w{i}_a"], b, stored.get(f"lokr_t{i}")))
        rank = len(b)
    first, second = factors
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - first.ndim)), second), rank


def _merged(
    old: torch.Tensor,
    update: torch.Tensor,
    stored: Mapping[str, torch.Tensor],
    scale: float,
    strength: float,
) -> torch.Tensor:
    """W + s (alpha / rank) dW; with a magnitude m, W + s (V m / |V| - W) of V = W + dW.

    DoRA (Liu et al. 2024), eq. 5. PEFT has a magnitude per output. LyCORIS has one per input or per
    output; the shape says which.
    """
    magnitude = stored.get("dora_scale", stored.get("magnitude"))
    if magnitude is None:
        return old + update * (scale * strength)
    axis = 1 if "dora_scale" in stored and magnitude.shape[0] == 1 else 0
    others = [i for i in range(old.ndim) if i != axis]
    direction = old + update * scale
    shape = [-1 if i == axis else 1 for i in range(old.ndim)]
    norm: torch.Tensor = torch.linalg.vector_norm(direction, dim=others, keepdim=True)
    if magnitude.numel() != norm.numel():
        raise ValueError(
            f"it has {magnitude.numel()} magnitudes for a weight of shape {tuple(old.shape)}"
        )
    new: torch.Tensor = direction * (magnitude.reshape(shape) / norm)
    return new if strength == 1 else old + strength * (new - old)


def _misfit(pipe: Any, lora: LoraFile, lost: Sequence[str], how: str) -> str:
    """Why a file does not fit a model, in one line."""
    own = pipe.unet.config.cross_attention_dim
    widths = {
        stored["down"].shape[1]
        for layer, stored in lora.layers.items()
        if "down" in stored and _flat(layer).endswith("attn2_to_k")
    }
    guess = "it was made for another kind of model, or by a program that names layers differently"
    if any(_TRANSFORMERS.search(_flat(layer)) for layer in lost):
        guess = "it was made for a transformer, such as Flux or SD 3, and this model has a UNet"
    elif widths - {own}:
        guess = f"its text is {_width(max(widths - {own}))} wide, this model's {_width(own)}"
    num = len(lora.layers)
    return (
        f"{num - len(lost)} of its {num} adapted layers exist in this model, {lost[0]!r} {how}: "
        f"{guess}"
    )


def _width(width: int) -> str:
    return f"{width} ({_TEXT_WIDTHS[width]})" if width in _TEXT_WIDTHS else str(width)
