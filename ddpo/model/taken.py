"""The kind of a base model: what its UNet predicts, on which noise schedule, at which timesteps.

A folder says so in its scheduler's configuration. A single file has none, and is read with the
configuration of the published model of its kind. So these sources are asked in this order, and the
first answer counts:

1. the settings of `pretrained`,
2. tensors that mark a file: `v_pred`, `ztsnr` (ComfyUI's supported_models.py reads them), and the
   layer that reads the guidance scale, which latent consistency models have (Luo et al. 2023),
3. its metadata: Stability's ModelSpec, and what ComfyUI and kohya's sd-scripts write,
4. `NAME.yaml` beside it, as the authors' own scripts and the WebUI read it,
5. for Stable Diffusion 2.x, a bias whose spread differs between its two kinds (ComfyUI),
6. its name, or the name of a LoRA, if one says that few steps are enough,
7. the configuration.

Three kinds of files are refused: a file that only its name calls a v-prediction model, a file whose
weights contradict the configuration chosen for it, and whatever DDIM cannot sample.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from ddpo.model.files import GUIDANCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from config.base import PretrainedSettings

# How much the biases of this layer spread in Stable Diffusion 2.x with v-prediction.
_SPREAD_LAYER = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SPREAD_OF_V = 0.09
_CROSS_ATTENTION = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
_FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
_WIDTH_OF_SD2, _LATENT_CHANNELS = 1024, 4

_WEIGHTS = "its weights"
# Tensors of models without a discrete noise schedule (EDM: Karras et al. 2022).
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
_PREDICTIONS = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "sample": "sample",
    "x0": "sample",
}
_ARCHITECTURES = {
    "stable-diffusion-v2-512": "epsilon",
    "stable-diffusion-v2-768-v": "v_prediction",
}

# Merges with Hyper-SD are called "...Hyper"; hyperrealism and hypernetworks are something else.
_FEW_STEPS = re.compile(
    r"(?i:turbo|lightning|hyper[-_ ]?sd|(?<![a-z])(?:lcm|tcd|dmd2?)(?![a-z]))"
    r"|(?i:hyper)(?![a-z]|(?i:[-_ ]?(?:real|net)))"
)
# Entries that the scheduler's file lacks. diffusers leaves them out if it makes another class.
_DEFAULTS = "_use_default_values"
# Of these, the models that were distilled for one sampler.
_OWN_SAMPLER = {"lcm": "LCMScheduler", "tcd": "TCDScheduler"}
_V_NAME = re.compile(r"v[-_ ]?pred(?!ator)", re.IGNORECASE)
_FLOW_NAME = re.compile(
    r"rectified|flow[-_ ]?match|(?<![a-z])(nya)?flow(?![a-z])|(?<![a-z])rf(?![a-z])", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Claims about a model beside its configuration, under the names of that configuration.

    Attributes:
        values: `prediction_type`, `rescale_betas_zero_snr`, `timestep_spacing`, and as
            `_class_name` the sampler that a model was distilled for, as far as known.
        sources: the same names -> who says so.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def over(self, other: Claims) -> Claims:
        """These claims, completed by the other's."""
        return Claims(
            values={**other.values, **self.values}, sources={**other.sources, **self.sources}
        )


def _claim(source: str, **values: Any) -> Claims:
    return Claims(values=values, sources=dict.fromkeys(values, source))


def claims_on(settings: PretrainedSettings, file: Path | None) -> Claims:
    """The claims of the settings, the file and the names.

    Args:
        settings: of the base model.
        file: the checkpoint; None for a folder, whose configuration says all but the names.

    Raises:
        ValueError: if such a model cannot be trained, or the settings must say what it is.
    """
    claims = _settings_claims(settings)
    if file is not None:
        claims = claims.over(_file_claims(file, claims))
    lora = "/".join(Path(settings.lora).parts[-2:])
    for setting, name in (("model", file.stem if file else ""), ("lora", lora)):
        if word := _FEW_STEPS.search(name):
            source = f"{word[0]} in the name of pretrained.{setting}"
            values = {"timestep_spacing": "trailing"}
            if sampler := _OWN_SAMPLER.get(word[0].lower()):
                values["_class_name"] = sampler
            claims = claims.over(_claim(source, **values))
    if claims.values.get("rescale_betas_zero_snr"):  # Lin et al. 2024, section 3.3
        claims = claims.over(_claim("zero terminal SNR", timestep_spacing="trailing"))
    return claims


def settled(claims: Claims, scheduler: Mapping[str, Any], *, is_chosen: bool) -> dict[str, Any]:
    """A scheduler's configuration with the claims in place.

    Args:
        claims: on the model.
        scheduler: its configuration.
        is_chosen: whether the settings name that configuration.

    Raises:
        ValueError: if a model's weights contradict a configuration that was chosen for it.
    """
    own = scheduler.get("prediction_type", "epsilon")
    seen = claims.values.get("prediction_type", own)
    if is_chosen and seen != own and claims.sources["prediction_type"] == _WEIGHTS:
        raise ValueError(
            f"its weights look like {seen}, and pretrained.single_file_config says {own}; say "
            f"which it is: pretrained.prediction_type={seen} or {own}"
        )
    defaults = scheduler.get(_DEFAULTS, ())
    said = {_DEFAULTS: [name for name in defaults if name not in claims.values]} if defaults else {}
    return {**scheduler, **claims.values, **said}


def described(claims: Claims, scheduler: Mapping[str, Any]) -> str:
    """The meaning of a settled configuration, with the source of each claim that changed it."""

    def part(text: str, name: str) -> str:
        source = claims.sources.get(name)
        return f"{text} ({source})" if source else text

    parts = [part(scheduler.get("prediction_type", "epsilon"), "prediction_type")]
    if scheduler.get("rescale_betas_zero_snr") or "rescale_betas_zero_snr" in claims.values:
        has_none = "" if scheduler["rescale_betas_zero_snr"] else "no "
        parts.append(part(f"{has_none}zero terminal SNR", "rescale_betas_zero_snr"))
    kind = scheduler.get("_class_name", "")
    if kind in _OWN_SAMPLER.values():
        parts.append(part(f"{kind.removesuffix('Scheduler')}'s timesteps", "_class_name"))
    else:
        spacing = scheduler.get("timestep_spacing", "leading")
        parts.append(part(f"{spacing} timesteps", "timestep_spacing"))
    return ", ".join(parts)


def _settings_claims(settings: PretrainedSettings) -> Claims:
    given = {
        "prediction_type": settings.prediction_type,
        "rescale_betas_zero_snr": {"yes": True, "no": False, "": ""}[settings.zero_snr],
        "timestep_spacing": settings.timestep_spacing,
    }
    return _claim("the settings", **{name: value for name, value in given.items() if value != ""})


def _file_claims(path: Path, known: Claims) -> Claims:
    """A checkpoint's claims about itself; `known` are the claims that outrank it."""
    with safe_open(path, framework="pt") as file:
        tensors, metadata = set(file.keys()), file.metadata() or {}
        spread = _spread(file, tensors)
    if marks := sorted(tensors.intersection(_EDM)):
        raise ValueError(
            f"it is an EDM model (its tensor {marks[0]}), which DDIM cannot sample; use a model "
            "with a discrete noise schedule, epsilon or v-prediction"
        )
    claims = Claims()
    if zero := _zero_snr(tensors, metadata):
        claims = _claim(zero[0], rescale_betas_zero_snr=zero[1])
    if GUIDANCE in tensors:
        claims = claims.over(_claim(f"its tensor {GUIDANCE}", _class_name=_OWN_SAMPLER["lcm"]))
    if "prediction_type" in known.values:
        return claims
    for source, text in _predictions(tensors, metadata, path.with_suffix(".yaml")):
        return claims.over(_claim(source, prediction_type=_prediction(source, text)))
    for name in (path.stem, metadata.get("modelspec.title", "")):
        _refuse_name(name)
    if spread is not None:
        kind = "v_prediction" if spread > _SPREAD_OF_V else "epsilon"
        claims = claims.over(_claim(_WEIGHTS, prediction_type=kind))
    return claims


def _spread(file: Any, tensors: set[str]) -> float | None:
    """The spread by which the two kinds of Stable Diffusion 2.x differ; else None."""
    if not {_SPREAD_LAYER, _CROSS_ATTENTION, _FIRST_LAYER} <= tensors:
        return None
    width, channels = (file.get_slice(n).get_shape()[1] for n in (_CROSS_ATTENTION, _FIRST_LAYER))
    if (width, channels) != (_WIDTH_OF_SD2, _LATENT_CHANNELS):
        return None
    return float(file.get_tensor(_SPREAD_LAYER).float().std(unbiased=False))


def _zero_snr(tensors: set[str], metadata: Mapping[str, str]) -> tuple[str, bool] | None:
    """The source of a claim that the last timestep is pure noise or not, and the claim."""
    if "ztsnr" in tensors:
        return "its tensor ztsnr", True
    if (text := metadata.get("ss_zero_terminal_snr")) is not None:
        return "its ss_zero_terminal_snr", text.lower() == "true"
    return None


def _predictions(
    tensors: set[str], metadata: Mapping[str, str], beside: Path
) -> Iterator[tuple[str, str]]:
    """Sources that say what the UNet predicts, with their own words; the strongest first."""
    if "v_pred" in tensors:
        yield "its tensor v_pred", "v"
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        if key in metadata:
            yield f"its {key}", metadata[key]
    if kind := _ARCHITECTURES.get(metadata.get("modelspec.architecture", "")):
        yield "its modelspec.architecture", kind
    if (text := metadata.get("ss_v_parameterization")) is not None:
        yield "its ss_v_parameterization", "v" if text.lower() == "true" else "epsilon"
    if beside.is_file():
        text = beside.read_text(encoding="utf-8", errors="replace")
        for pattern in (r"^\s*parameterization\s*:\s*[\"']?([\w-]+)", r"\.(V|Eps)Scaling\b"):
            if found := re.search(pattern, text, re.MULTILINE):
                yield f"{beside.name} beside it", found[1]


def _prediction(source: str, text: str) -> str:
    kind = _PREDICTIONS.get(text.lower())
    if kind is None:
        raise ValueError(
            f"{source} says {text!r}, and DDIM samples epsilon and v-prediction only; if it is one "
            "of them, set pretrained.prediction_type"
        )
    return kind


def _refuse_name(name: str) -> None:
    if _FLOW_NAME.search(name):
        raise ValueError(
            f"its name {name!r} says rectified flow, which DDIM cannot sample; if it is none, set "
            "pretrained.prediction_type=epsilon or v_prediction"
        )
    if _V_NAME.search(name):
        raise ValueError(
            f"its name {name!r} says v-prediction, and nothing in the file does; say what it is: "
            "pretrained.prediction_type=v_prediction and pretrained.zero_snr=yes or no"
        )
