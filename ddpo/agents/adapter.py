"""A LoRA adapter as a value: read it, blend it, reduce its rank, write it, apply it.

Policies are blended by their weight updates dW = (alpha / rank) B A. Averaging A and B separately
would give another result: a product of averages is not the average of products.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from config.settings.errors import UserError
from ddpo.files import ADAPTER_FILE, share, write_atomic
from ddpo.layer_names import is_sdxl, original_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ddpo.agents.slots import Agents
    from ddpo.types import Policy

    Matrices = Mapping[str, tuple[torch.Tensor, torch.Tensor]]

_UNET = "unet."
_SD1_WIDTH, _SD2_WIDTH, _SDXL_WIDTH = 768, 1024, 2048  # of a UNet's text embeddings
_MODELSPEC_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
_A, _B = ".lora_A.weight", ".lora_B.weight"


class AdapterError(UserError):
    """An adapter that cannot be read, or does not fit."""


class Stored(Protocol):
    """A policy whose adapter is on disk."""

    @property
    def file(self) -> Path:
        """In diffusers' format."""
        ...


class Blended(Protocol):
    """A weighted sum of such policies; a single policy is one part."""

    @property
    def parts(self) -> Sequence[tuple[Stored, float]]:
        """The policies and their coefficients."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """Low-rank updates of a UNet's linear layers; the update of a layer is (alpha / rank) B A.

    Attributes:
        matrices: layer -> A (rank, in), B (out, rank).
        rank: of every layer.
        alpha: of every layer.
        target_modules: suffixes of the adapted layers' names, as peft expects them.
    """

    matrices: Matrices
    rank: int
    alpha: float
    target_modules: tuple[str, ...]

    @property
    def scale(self) -> float:
        """Strength of the update: alpha / rank."""
        return self.alpha / self.rank

    def update(self, layer: str) -> torch.Tensor:
        """The weight update dW (out, in) of a layer."""
        a, b = self.matrices[layer]
        return self.scale * b @ a

    @classmethod
    def read(cls, path: Path) -> Adapter:
        """Read a file in diffusers' format, with rank and alpha inside.

        Raises:
            AdapterError: if the file is missing, damaged, or not such an adapter.
        """
        try:
            with safe_open(path, framework="pt") as file:
                config = json.loads((file.metadata() or {})["lora_adapter_metadata"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            layers = [name.removesuffix(_A) for name in tensors if name.endswith(_A)]
            adapter = cls(
                matrices={
                    layer.removeprefix(_UNET): (tensors.pop(layer + _A), tensors.pop(layer + _B))
                    for layer in layers
                },
                rank=int(config[f"{_UNET}r"]),
                alpha=float(config[f"{_UNET}lora_alpha"]),
                target_modules=tuple(config[f"{_UNET}target_modules"]),
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise AdapterError(f"{path} is not a whole adapter of a run: {what}") from error
        ranks = {a.shape[0] for a, _ in adapter.matrices.values()}
        if tensors or ranks != {adapter.rank}:
            raise AdapterError(
                f"{path} is not a whole adapter of a run: ranks {sorted(ranks)} where its metadata "
                f"says {adapter.rank}, unknown entries {sorted(tensors)[:3]}"
            )
        return adapter

    @classmethod
    def of(cls, member: Blended) -> Adapter:
        """The adapter of a policy, or the exact blend of several.

        Raises:
            AdapterError: if a file is missing or damaged.
        """
        return cls.blend([(cls.read(policy.file), share) for policy, share in member.parts])

    @classmethod
    def blend(cls, parts: Sequence[tuple[Adapter, float]]) -> Adapter:
        """The adapter whose update is exactly sum_i c_i dW_i: the parts' matrices are stacked.

        The rank is the sum of the parts' ranks. Parts that share their A's, as members of one
        conditioned family do, keep their rank: their B's are added.

        Args:
            parts: adapters of the same layers, and their coefficients c_i.

        Raises:
            AdapterError: if the adapters belong to different layers.
        """
        first, share = parts[0]
        if len(parts) == 1 and share == 1:
            return first
        if any(part.matrices.keys() != first.matrices.keys() for part, _ in parts):
            raise AdapterError("only adapters of the same layers can be blended")
        factors = [share * part.scale / first.scale for part, share in parts]
        share_a = all(
            torch.equal(part.matrices[layer][0], a)
            for layer, (a, _) in first.matrices.items()
            for part, _ in parts[1:]
        )
        rank = first.rank if share_a else sum(part.rank for part, _ in parts)
        matrices = {}
        for layer, (first_a, _) in first.matrices.items():
            pairs = [part.matrices[layer] for part, _ in parts]
            scaled = [c * b for (_, b), c in zip(pairs, factors, strict=True)]
            if share_a:
                matrices[layer] = (first_a, torch.stack(scaled).sum(dim=0))
            else:
                matrices[layer] = (torch.cat([a for a, _ in pairs]), torch.cat(scaled, dim=1))
        return cls(
            matrices=matrices,
            rank=rank,
            alpha=first.scale * rank,
            target_modules=first.target_modules,
        )

    def reduced(self, rank: int) -> tuple[Adapter, float]:
        """The nearest adapter of a lower rank, and the relative error of its updates.

        It keeps the largest singular values of each layer's update (Eckart and Young 1936). They
        come from QR factorisations of the two factors, without forming the update:
        dW = B A = Q_out (R_out R_in^T) Q_in^T.

        Args:
            rank: at least 1.

        Returns:
            The adapter, with alpha = rank, and ||dW' - dW|| / ||dW|| over all layers together
            (Frobenius). This adapter itself and 0 if its rank is not higher.

        Raises:
            AdapterError: if the rank is below 1.
        """
        if rank < 1:
            raise AdapterError(f"rank={rank} must be at least 1")
        if rank >= self.rank:
            return self, 0.0
        matrices, dropped, total = {}, 0.0, 0.0
        for layer, (a, b) in self.matrices.items():
            # Singular values of the update.
            q_out, r_out = torch.linalg.qr(self.scale * b.double())
            q_in, r_in = torch.linalg.qr(a.double().T)
            u, s, vh = torch.linalg.svd(r_out @ r_in.T)
            # The largest ones, shared evenly by both factors.
            root = s[:rank].sqrt()
            kept = len(root)  # less than the rank if the layer is narrower
            low_a, low_b = a.new_zeros(rank, a.shape[1]), b.new_zeros(len(b), rank)
            low_a[:kept] = root[:, None] * (vh[:kept] @ q_in.T)
            low_b[:, :kept] = (q_out @ u[:, :kept]) * root
            matrices[layer] = (low_a, low_b)
            dropped += s[rank:].square().sum().item()
            total += s.square().sum().item()
        adapter = Adapter(
            matrices=matrices, rank=rank, alpha=float(rank), target_modules=self.target_modules
        )
        return adapter, math.sqrt(dropped / total) if total else 0.0

    def to(self, dtype: torch.dtype) -> Adapter:
        """The adapter in another precision.

        Raises:
            AdapterError: if an entry is too large for that precision.
        """
        matrices = {name: (a.to(dtype), b.to(dtype)) for name, (a, b) in self.matrices.items()}
        if not all(a.isfinite().all() and b.isfinite().all() for a, b in matrices.values()):
            raise AdapterError(f"the adapter has entries that {dtype} cannot hold; use fp32")
        return Adapter(
            matrices=matrices,
            rank=self.rank,
            alpha=self.alpha,
            target_modules=self.target_modules,
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The matrices under peft's names, e.g. `....to_q.lora_A.weight`."""
        state = {}
        for layer, (a, b) in self.matrices.items():
            state[layer + _A] = a.contiguous()
            state[layer + _B] = b.contiguous()
        return state

    def save(self, folder: Path) -> Path:
        """Write the adapter as `pipe.load_lora_weights(folder)` reads it, with rank and alpha.

        Without them, an adapter whose alpha differs from its rank would load at the wrong strength.

        Args:
            folder: created if missing.

        Returns:
            The file.
        """
        StableDiffusionPipeline.save_lora_weights(  # the same layout for SDXL's UNet
            folder,
            unet_lora_layers=self.state_dict(),
            unet_lora_adapter_metadata=self._metadata(),
        )
        share(folder / ADAPTER_FILE)  # safetensors makes files private
        return folder / ADAPTER_FILE

    def _metadata(self) -> dict[str, object]:
        """Peft's configuration: the fields that every release since 0.17 knows.

        A release refuses fields of later releases, and uses its defaults for missing fields.
        """
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": sorted(self.target_modules),
            "rank_pattern": {},
            "alpha_pattern": {},
            "bias": "none",
            "lora_dropout": 0.0,
            "init_lora_weights": False,
            "use_dora": False,
            "use_rslora": False,
        }

    def save_kohya(
        self, path: Path, *, prediction_type: str = "epsilon", zero_snr: bool = False
    ) -> Path:
        """Write the adapter in kohya's layout, which ComfyUI, A1111 and Forge read.

        As in kohya's sd-scripts, SDXL's layers carry their original names, and the metadata says
        what the base model predicts.

        Args:
            path: the file; its folder is created if missing.
            prediction_type: what the base model predicts, in diffusers' words.
            zero_snr: whether the base model's first step starts from pure noise.

        Returns:
            The file.
        """
        names = {layer: layer for layer in self.matrices}
        if self.is_sdxl:
            is_partial = any("attentions" in target for target in self.target_modules)
            names = original_names(self.matrices, 2 if is_partial else 1)
        state = {}
        for layer, (a, b) in self.matrices.items():
            name = f"lora_unet_{names[layer].replace('.', '_')}"
            state[f"{name}.lora_down.weight"] = a.contiguous()
            state[f"{name}.lora_up.weight"] = b.contiguous()
            state[f"{name}.alpha"] = torch.tensor(self.alpha)
        metadata = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(self.rank),
            "ss_network_alpha": str(self.alpha),
            "ss_v2": str(self._text_width == _SD2_WIDTH),
            "ss_zero_terminal_snr": str(zero_snr),
            **self._kohya_version(prediction_type == "v_prediction"),
        }
        if prediction_type in _MODELSPEC_PREDICTIONS:
            metadata["modelspec.prediction_type"] = _MODELSPEC_PREDICTIONS[prediction_type]
        write_atomic(path, save(state, metadata))
        return path

    @property
    def is_sdxl(self) -> bool:
        """Whether the adapter was made for SDXL's UNet."""
        return self._text_width == _SDXL_WIDTH or is_sdxl(self.matrices)

    @property
    def _text_width(self) -> int:
        """Width of the text embeddings, which identifies the model family; 0 if unknown."""
        widths = (a.shape[1] for n, (a, _) in self.matrices.items() if n.endswith("attn2.to_k"))
        return next(widths, 0)

    def _kohya_version(self, predicts_v: bool) -> dict[str, str]:
        """Metadata that names the base model's family, by which these programs sort adapters."""
        of_sd2 = ("sd_v2", "stable-diffusion-v2-768-v" if predicts_v else "stable-diffusion-v2-512")
        families = {
            _SD1_WIDTH: ("sd_v1", "stable-diffusion-v1"),
            _SD2_WIDTH: of_sd2,
            _SDXL_WIDTH: ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
        }
        if self._text_width not in families:
            return {}
        version, architecture = families[self._text_width]
        return {
            "ss_base_model_version": version,
            "modelspec.architecture": f"{architecture}/lora",
        }

    def apply(self, pipe: Any, name: str) -> None:
        """Load the adapter into a pipeline and make it the only active one.

        Args:
            pipe: a diffusers pipeline with the UNet that the adapter was made for.
            name: of the adapter in the pipeline; an adapter of that name is replaced.

        Raises:
            AdapterError: if the adapter does not fit the pipeline's UNet.
        """
        self._check_fits(pipe.unet)
        with warnings.catch_warnings():  # several adapters are intended
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted")
            if name in getattr(pipe.unet, "peft_config", {}):
                pipe.delete_adapters(name)
            pipe.unet.load_lora_adapter(
                self.state_dict(),
                prefix=None,
                adapter_name=name,
                metadata=self._metadata(),
                _pipeline=pipe,
            )
        pipe.set_adapters(name)

    def _check_fits(self, unet: torch.nn.Module) -> None:
        """Refuse a UNet that lacks one of the layers, before changing it."""
        modules = dict(unet.named_modules())
        for layer, (a, b) in self.matrices.items():
            module = modules.get(layer)
            linear = getattr(module, "base_layer", module)  # another adapter may already wrap it
            found = getattr(getattr(linear, "weight", None), "shape", None)
            if found != (len(b), a.shape[1]):
                raise AdapterError(
                    f"the adapter does not fit this pipeline: {layer} should be "
                    f"{(len(b), a.shape[1])} and is {found and tuple(found)}; load the base model "
                    "that the run was trained on"
                )


def adapter_of(agents: Agents, policy: Policy) -> Adapter:
    """The adapter of a policy of `agents`, which know its layers."""
    settings = agents.settings
    return Adapter(
        matrices={name: agents.matrices(policy.adapter, name) for name in agents.layer_names},
        rank=settings.rank,
        alpha=settings.alpha,
        target_modules=settings.target_modules,
    )


def policy_of(agents: Agents, adapter: Adapter) -> Policy:
    """An adapter as a policy that `agents` can load for evaluation, with empty optimiser state.

    Args:
        agents: with the same layers; their rank may be higher, and the rest is filled with zeros.
        adapter: of a policy or a blend.

    Raises:
        AdapterError: if the adapter belongs to other layers, or has a higher rank.
    """
    settings = agents.settings
    if set(adapter.matrices) != set(agents.layer_names) or adapter.rank > settings.rank:
        raise AdapterError(
            f"the adapter (rank {adapter.rank}, {len(adapter.matrices)} layers) does not fit the "
            f"base model's {len(agents.layer_names)} layers at rank {settings.rank}"
        )
    initial = agents.initial_policy()
    flat = torch.zeros_like(initial.adapter)
    for layer, (a, b) in adapter.matrices.items():
        to_a, to_b = agents.matrices(flat, layer)
        if to_a.shape[1] != a.shape[1] or len(to_b) != len(b):
            raise AdapterError(f"the adapter does not fit the base model: {layer} differs")
        to_a[: adapter.rank] = a
        to_b[:, : adapter.rank] = adapter.scale / (settings.alpha / settings.rank) * b
    return dataclasses.replace(initial, adapter=flat)


def save_adapter(agents: Agents, policy: Policy, folder: Path) -> None:
    """Write a policy's adapter for `pipe.load_lora_weights(folder)`; see `Adapter.save`.

    The file is the same for every pipeline class: the UNet's layers have the same prefix in all.

    Args:
        agents: with the policy's layers.
        policy: whose adapter to write.
        folder: created if missing.
    """
    adapter_of(agents, policy).save(folder)


def holds_adapter(agents: Agents, policy: Policy, folder: Path) -> bool:
    """Whether a folder holds this policy's adapter, bit for bit, as `save_adapter` writes it."""
    try:
        found = Adapter.read(folder / ADAPTER_FILE).state_dict()
    except AdapterError:
        return False
    own = adapter_of(agents, policy).state_dict()
    return own.keys() == found.keys() and all(torch.equal(own[n], found[n]) for n in own)
