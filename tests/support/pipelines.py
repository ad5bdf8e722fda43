"""Random pipelines of the real classes, small enough for tests: 16 px pictures, 4x8x8 latents."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import torch
from torch import nn

_FILLED = (dict, set, OrderedDict)  # what belongs to one module, not to all of its kind
LETTERS = "abcdefghijklmnopqrstuvwxyz"
KINDS = ("sd1", "sd2", "sdxl")  # Stable Diffusion 1.x, 2.x with v-prediction, XL
TWO_KINDS = ("sd1", "sdxl")  # 2.x has the layers of XL and the inputs of 1.x
_WORDS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(c + "</w>" for c in LETTERS)]
_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
_UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
# Differences of the three families' UNets from the first.
_UNET_CHANGES: dict[str, dict[str, Any]] = {
    "sd1": {},
    "sd2": {
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2),
        "cross_attention_dim": 16 + 24,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 12,
    },
}


def sd_scheduler(**changes: Any) -> Any:
    """A DDIMScheduler with Stable Diffusion 1.5's settings."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        **{**_SCHEDULE, "clip_sample": False, "set_alpha_to_one": False, **changes}
    )


def make_tiny_pipe(kind: str = "sd1", **unet_changes: Any) -> Any:
    """A pipeline with random weights, of the same classes as one of the `KINDS`.

    Torch's random state is the same after every call.
    """
    networks, random_state = _networks(kind, **unet_changes)
    torch.set_rng_state(random_state)
    parts = {
        name: copy.deepcopy(network) if name.startswith("text") else _copied(network)
        for name, network in networks.items()
    }
    return _sdxl(parts) if kind == "sdxl" else _sd(kind, parts)


@lru_cache
def _networks(kind: str, **unet_changes: Any) -> tuple[dict[str, Any], torch.Tensor]:
    """Networks to copy, and torch's random state after they were made."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    unet = {**_UNET, **_UNET_CHANGES[kind], **unet_changes}
    is_xl, is_v2 = kind == "sdxl", kind == "sd2"
    networks = {
        "unet": UNet2DConditionModel(**unet).eval(),
        "vae": AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            sample_size=16,
            **({"scaling_factor": 0.13025, "force_upcast": True} if is_xl else {}),
        ).eval(),
    }
    if is_xl:
        big = {"hidden_size": 24, "num_hidden_layers": 2, "hidden_act": "gelu"}
        encoder = CLIPTextModel(_text_config(num_hidden_layers=2))
        second = CLIPTextModelWithProjection(_text_config(**big, projection_dim=12))
        networks |= {"text_encoder": encoder.eval(), "text_encoder_2": second.eval()}
    else:  # that of 2.x comes from OpenCLIP
        changes = {"hidden_act": "gelu", "num_hidden_layers": 2} if is_v2 else {}
        networks["text_encoder"] = CLIPTextModel(_text_config(**changes)).eval()
    return networks, torch.get_rng_state()


def _copied(network: nn.Module) -> nn.Module:
    """A copy with weights of its own, in a fraction of the time of `copy.deepcopy`.

    Not for transformers' networks, whose modules share a configuration that changes.
    """
    made = object.__new__(type(network))
    for name, value in vars(network).items():
        made.__dict__[name] = value.copy() if type(value) in _FILLED else value
    for name, weight in network._parameters.items():
        made._parameters[name] = None if weight is None else nn.Parameter(weight.detach().clone())
    for name, values in network._buffers.items():
        made._buffers[name] = None if values is None else values.clone()
    for name, child in network._modules.items():
        made._modules[name] = None if child is None else _copied(child)
    return made


def _sd(kind: str, networks: dict[str, Any]) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        **networks,
        tokenizer=_tokenizer(),
        scheduler=sd_scheduler(prediction_type="v_prediction" if kind == "sd2" else "epsilon"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(networks: dict[str, Any]) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        **networks,
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        scheduler=EulerDiscreteScheduler(**_SCHEDULE, timestep_spacing="leading"),
        add_watermarker=False,
    )


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    vocabulary = {word: i for i, word in enumerate(_WORDS)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8)


def _text_config(**changes: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        **{
            "vocab_size": len(_WORDS),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 8,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
            **changes,
        }
    )


def load_plain(folder: Any) -> Any:
    """A saved pipeline as plain diffusers loads it.

    Loaded weights are aligned differently in memory, which changes the last bit of a product.
    """
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder)


def draw_without_and_with(
    adapter: Any, pipe: Any, texts: Any, seeds: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of a plain pipeline before and after it loads the adapter in a folder."""
    without = draw_with_diffusers(pipe, texts, seeds)
    pipe.load_lora_weights(adapter)
    return without, draw_with_diffusers(pipe, texts, seeds)


def of_8_bits(images: torch.Tensor) -> torch.Tensor:
    """The same pictures, rounded to 8 bits, as they are saved and as rewards see them."""
    return images.mul(255).round().div(255)


def draw_with_diffusers(
    pipe: Any, texts: Any, seeds: Any, *, scheduler: Any = None, **changes: Any
) -> torch.Tensor:
    """Pictures (rows, 3, H, W) from diffusers' own sampling loop, one seed each, by default DDIM's.

    Prompts are encoded one by one: in a batch, the last bit of an embedding depends on the others.
    """
    from diffusers import DDIMScheduler

    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler or DDIMScheduler.from_config(
        pipe.scheduler.config, clip_sample=False
    )
    settings = {"num_inference_steps": 4, "guidance_scale": 5.0, "eta": 1.0, **changes}
    negative = settings.pop("negative_prompt", None)
    encoded = [
        pipe.encode_prompt(
            text,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=negative,
        )
        for text in texts
    ]
    names = ("prompt_embeds", "negative_prompt_embeds")
    names += tuple(name.replace("prompt", "pooled_prompt") for name in names)
    embeds = {
        name: torch.cat(rows) for name, rows in zip(names, zip(*encoded, strict=True), strict=False)
    }
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(generator=generators, output_type="pt", **embeds, **settings).images
