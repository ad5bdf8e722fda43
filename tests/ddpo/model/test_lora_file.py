"""LoRA files as people have them: each merges exactly, layer by layer, or is refused in a line.

The right weights come from the formula of each format, from peft's own layers, or from running the
parts of a convolution one after another.
"""

from __future__ import annotations

import copy
import json
import re
from contextlib import contextmanager
from typing import NamedTuple

import peft
import pytest
import torch
from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import save_file
from torch import nn

from ddpo.model.lora_file import LoraFile, locate, merge
from tests.support.original_layout import unet_name
from tests.support.pipelines import make_tiny_pipe

ATTENTION = ("attn1.to_q", "attn2.to_k", "attn2.to_out.0", "q_proj", "out_proj", "mlp.fc1")
CONVOLUTIONS = ("conv1", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")


class Layer(NamedTuple):
    """Where a layer is, and what it should become."""

    part: str
    name: str
    module: nn.Module

    @property
    def kohya(self):
        """Its name in a file of kohya's for SD 1.x."""
        prefix = "lora_unet_" if self.part == "unet" else "lora_te_"
        name = self.name
        if self.part != "unet":
            name = "text_model." + name.removeprefix("text_model.")
        return prefix + name.replace(".", "_")


@pytest.fixture(scope="module", name="originals")
def _originals():
    return {kind: make_tiny_pipe(kind) for kind in ("sd1", "sdxl")}


@contextmanager
def borrowed(pipe):
    """A pipeline that has its weights again afterwards."""
    before = {layer: layer.module.weight.data.clone() for layer in layers_of(pipe, ("",))}
    yield pipe
    for layer, weight in before.items():
        layer.module.weight.data = weight


@pytest.fixture(name="pipe")
def _pipe(originals):
    with borrowed(originals["sd1"]) as pipe:
        yield pipe


def layers_of(pipe, suffixes=ATTENTION, parts=("unet", "text_encoder", "text_encoder_2")):
    return [
        Layer(part, name, module)
        for part in parts
        if getattr(pipe, part, None) is not None
        for name, module in getattr(pipe, part).named_modules()
        if name.endswith(suffixes) and isinstance(module, (nn.Linear, nn.Conv2d))
    ]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 3


def low_rank(layer, rank, seed):
    """kohya's down and up of a layer; for a convolution, these are two convolutions."""
    out, into, *kernel = layer.module.weight.shape
    down = random(rank, into, *kernel, seed=seed)
    return down, random(out, rank, *[1] * len(kernel), seed=seed + 1)


def merged(pipe, state, folder, strength=1.0, metadata=None):
    """Merge what a file holds; the weights before and after, by part and name."""

    def weights():
        layers = layers_of(pipe, ("",))
        return {(layer.part, layer.name): layer.module.weight.data.clone() for layer in layers}

    before = weights()
    state = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    save_file(state, folder / "l.safetensors", metadata)
    merge(pipe, LoraFile.read(folder / "l.safetensors"), strength)
    return before, weights()


def check(before, after, expected):
    """Layers are as expected, all others as they were."""
    assert expected
    for where, weight in before.items():
        if where in expected:
            torch.testing.assert_close(after[where], expected[where], rtol=1e-5, atol=1e-6)
            assert not torch.allclose(after[where], weight)
        else:
            assert torch.equal(after[where], weight)


def test_every_layer_of_a_resized_kohya_file_has_its_own_rank_and_alpha(pipe, tmp_path):
    """As sd-scripts' resize_lora and block-wise training write them."""
    state, expected = {}, {}
    for i, layer in enumerate(layers_of(pipe, ATTENTION + CONVOLUTIONS)):
        rank, alpha = [(4, 2.0), (4, 2.0), (1, 0.5), (3, 6.0)][i % 4]
        down, up = low_rank(layer, rank, 2 * i)
        state |= {
            f"{layer.kohya}.lora_down.weight": down,
            f"{layer.kohya}.lora_up.weight": up,
            f"{layer.kohya}.alpha": torch.tensor(alpha),
        }
        weight = layer.module.weight.detach()
        update = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        expected[layer.part, layer.name] = weight + 0.75 * alpha / rank * update
    check(*merged(pipe, state, tmp_path, 0.75), expected)


def test_a_merged_convolution_is_its_three_convolutions_one_after_another(pipe, tmp_path):
    """LyCORIS' LoCon with a core: 1 x 1 in, k x k at low rank, 1 x 1 out."""
    (layer,) = layers_of(pipe, ("down_blocks.0.resnets.0.conv1",))
    down, up = random(3, 8, 1, 1, seed=1), random(8, 3, 1, 1, seed=2)
    mid, x = random(3, 3, 3, 3, seed=3), random(1, 8, 8, 8, seed=4)
    old = layer.module(x)
    names = {"lora_down": down, "lora_mid": mid, "lora_up": up}
    state = {f"{layer.kohya}.{name}.weight": tensor for name, tensor in names.items()}
    merged(pipe, state | {f"{layer.kohya}.alpha": torch.tensor(6.0)}, tmp_path)
    inner = nn.functional.conv2d(nn.functional.conv2d(x, down), mid, padding=1)
    expected = old + 2 * nn.functional.conv2d(inner, up)
    torch.testing.assert_close(layer.module(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_doras_magnitudes_scale_rows_or_columns_of_the_changed_weight(
    pipe, tmp_path, axis, strength
):
    """dora_scale of LyCORIS: (out, 1, ...) or, by default, (1, in, ...)."""
    state, expected = {}, {}
    for i, layer in enumerate(layers_of(pipe, ("attn1.to_q", "q_proj", "conv1"))):
        down, up = low_rank(layer, 2, 2 * i)
        weight = layer.module.weight.detach()
        shape = [size if dim == axis else 1 for dim, size in enumerate(weight.shape)]
        magnitude = random(*shape, seed=i).abs() + 0.5
        state |= {
            f"{layer.kohya}.lora_down.weight": down,
            f"{layer.kohya}.lora_up.weight": up,
            f"{layer.kohya}.alpha": torch.tensor(1.0),
            f"{layer.kohya}.dora_scale": magnitude,
        }
        new = weight + 0.5 * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        for index in range(weight.shape[axis]):
            row = new.select(axis, index)
            row *= magnitude.flatten()[index] / row.norm()
        expected[layer.part, layer.name] = weight + strength * (new - weight)
    check(*merged(pipe, state, tmp_path, strength), expected)


PEFT_CONFIGS = {
    "lora": peft.LoraConfig(
        r=4, lora_alpha=2, rank_pattern={"to_k": 2}, alpha_pattern={"attn2.to_k": 3}
    ),
    "rslora": peft.LoraConfig(r=4, lora_alpha=2, use_rslora=True),
    "dora": peft.LoraConfig(r=2, lora_alpha=3, use_dora=True),
    "loha": peft.LoHaConfig(r=2, alpha=3),
    "loha_of_cores": peft.LoHaConfig(r=2, alpha=3, use_effective_conv2d=True),
    "lokr": peft.LoKrConfig(r=2, alpha=3),
    "lokr_of_products": peft.LoKrConfig(r=1, alpha=3, decompose_both=True, decompose_factor=4),
    "lokr_of_cores": peft.LoKrConfig(r=1, alpha=3, use_effective_conv2d=True),
}


@pytest.mark.parametrize("name", PEFT_CONFIGS)
def test_what_peft_saves_is_merged_as_peft_merges_it(pipe, tmp_path, name):
    """Keys begin with base_model.model., and alpha is in adapter_config.json beside the weights."""
    config = PEFT_CONFIGS[name]
    config.target_modules = ["to_q", "attn2.to_k", "resnets.0.conv1", "conv_shortcut"]
    before = copy.deepcopy(pipe.unet)
    network = peft.get_peft_model(copy.deepcopy(before), config)
    for i, parameter in enumerate(p for p in network.parameters() if p.requires_grad):
        parameter.data = parameter.data.abs() + random(*parameter.shape, seed=i)
    network.save_pretrained(tmp_path)
    merge(pipe, LoraFile.read(locate(str(tmp_path), None, None)), 1.0)
    theirs = network.merge_and_unload().state_dict()
    ours, before = pipe.unet.state_dict(), before.state_dict()
    assert ours.keys() == theirs.keys()
    assert sum(not torch.equal(ours[key], before[key]) for key in ours) > 10
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-5)


def test_an_adapter_that_changed_its_base_when_it_began_is_refused(pipe, tmp_path):
    network = peft.get_peft_model(
        copy.deepcopy(pipe.unet),
        peft.LoraConfig(target_modules=["to_q"], init_lora_weights="pissa"),
    )
    network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="init_lora_weights='pissa', which changes the base"):
        LoraFile.read(tmp_path / "adapter_model.safetensors")


NAMINGS = {
    "diffusers": "unet.{name}.lora_A.weight unet.{name}.lora_B.weight",
    "peft": "base_model.model.{name}.lora_A.weight base_model.model.{name}.lora_B.weight",
    "peft_with_adapter": (
        "base_model.model.{name}.lora_A.default.weight "
        "base_model.model.{name}.lora_B.default.weight"
    ),
    "unprefixed": "{name}.lora_A.weight {name}.lora_B.weight",
    "diffusers_0_22": "unet.{name}.lora.down.weight unet.{name}.lora.up.weight",
    "attention_processors": ("unet.{processor}_lora.down.weight unet.{processor}_lora.up.weight"),
    "unprefixed_processors": "{processor}_lora.down.weight {processor}_lora.up.weight",
    "kohya": "lora_unet_{flat}.lora_down.weight lora_unet_{flat}.lora_up.weight",
    "kohya_of_sdxl": "lora_unet_{ldm}.lora_down.weight lora_unet_{ldm}.lora_up.weight",
    "lycoris": "lycoris_{flat}.lora_down.weight lycoris_{flat}.lora_up.weight",
    "comfyui": "diffusion_model.{original}.lora_A.weight diffusion_model.{original}.lora_B.weight",
}


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_way_of_naming_layers_is_known(originals, tmp_path, naming, kind):
    with borrowed(originals[kind]) as pipe:
        check_naming(pipe, tmp_path, NAMINGS[naming].split())


def check_naming(pipe, tmp_path, keys):
    """Layers whose matrices have these keys are found."""
    state, expected = {}, {}
    for i, layer in enumerate(layers_of(pipe, ("to_q", "to_k", "to_out.0"), ["unet"])):
        original = unet_name(layer.name, pipe.unet.config.layers_per_block)
        places = {
            "name": layer.name,
            "flat": layer.name.replace(".", "_"),
            "processor": re.sub(r"\.(to_\w+)(\.0)?$", r".processor.\1", layer.name),
            "original": original,
            "ldm": original.replace(".", "_"),
        }
        matrices = low_rank(layer, 2, 2 * i)
        for key, matrix in zip(keys, matrices, strict=True):
            state[key.format(**places)] = matrix
        expected[layer.name] = layer.module.weight.detach() + matrices[1] @ matrices[0]
    merged(pipe, state, tmp_path)
    for name, value in expected.items():
        torch.testing.assert_close(pipe.unet.get_submodule(name).weight, value)


TEXT_NAMINGS = {
    "diffusers": "text_encoder.text_model.{name}.lora_A.weight",
    "without_a_level": "text_encoder.{name}.lora_A.weight",
    "linear_layers": "text_encoder.text_model.{name}.lora_linear_layer.down.weight",
    "old_projections": "text_encoder.text_model.{old}_lora.down.weight",
    "kohya": "lora_te_text_model_{flat}.lora_down.weight",
    "kohya_of_sdxl": "lora_te1_text_model_{flat}.lora_down.weight",
    "peft": "base_model.model.text_model.{name}.lora_A.weight",
}
_UPS = {"lora_A": "lora_B", "lora_down": "lora_up", "down.weight": "up.weight"}


@pytest.mark.parametrize("naming", TEXT_NAMINGS)
def test_every_way_of_naming_a_text_encoders_layers_is_known(pipe, tmp_path, naming):
    name = "encoder.layers.0.self_attn.q_proj"
    (layer,) = layers_of(pipe, (name,), ["text_encoder"])
    down, up = low_rank(layer, 2, 0)
    old = name.replace("q_proj", "to_q")
    key = TEXT_NAMINGS[naming].format(name=name, flat=name.replace(".", "_"), old=old)
    other = next(key.replace(a, b) for a, b in _UPS.items() if a in key)
    expected = layer.module.weight.detach() + up @ down
    merged(pipe, {key: down, other: up}, tmp_path)
    torch.testing.assert_close(layer.module.weight, expected)


def test_names_that_fit_both_text_encoders_are_refused(originals, tmp_path):
    pipe = originals["sdxl"]
    (layer,) = layers_of(pipe, ("encoder.layers.0.self_attn.q_proj",), ["text_encoder"])
    down, up = low_rank(layer, 2, 0)
    key = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"
    with pytest.raises(ValueError, match=r"both text encoders have .* begin .* text_encoder\."):
        merged(pipe, {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, tmp_path)


def test_the_strength_that_diffusers_keeps_in_the_file_counts(pipe, tmp_path):
    layer, *_ = layers_of(pipe, ("attn1.to_q",), ["unet"])
    down, up = low_rank(layer, 2, 0)
    config = {"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {}, "text_encoder.r": 1}
    state = {f"unet.{layer.name}.lora_A.weight": down, f"unet.{layer.name}.lora_B.weight": up}
    expected = layer.module.weight.detach() + 3 * up @ down
    merged(pipe, state, tmp_path, metadata={"lora_adapter_metadata": json.dumps(config)})
    torch.testing.assert_close(layer.module.weight, expected)


def test_a_layer_under_two_names_is_merged_once_and_never_twice_differently(pipe, tmp_path):
    layer, *_ = layers_of(pipe, ("attn1.to_q",), ["unet"])
    down, up = low_rank(layer, 2, 0)
    original = unet_name(layer.name, 1).replace(".", "_")
    names = (layer.kohya, f"lora_unet_{original}")
    state = {f"{name}.lora_down.weight": down for name in names}
    state |= {f"{name}.lora_up.weight": up for name in names}
    expected = layer.module.weight.detach() + up @ down
    merged(pipe, state, tmp_path)
    torch.testing.assert_close(layer.module.weight, expected)
    state[f"{names[1]}.lora_up.weight"] = 2 * up
    with pytest.raises(ValueError, match="two updates of one layer"):
        merged(pipe, state, tmp_path)


def test_of_how_many_layers_nobody_knows_the_alpha_is_counted(pipe, tmp_path):
    layers = layers_of(pipe, ("attn1.to_q", "attn1.to_k"), ["unet"])
    state = {}
    for i, layer in enumerate(layers):
        down, up = low_rank(layer, 2, i)
        state |= {f"{layer.kohya}.lora_down.weight": down, f"{layer.kohya}.lora_up.weight": up}
    state[f"{layers[0].kohya}.alpha"] = torch.tensor(2.0)
    save_file(state, tmp_path / "l.safetensors")
    assert merge(pipe, LoraFile.read(tmp_path / "l.safetensors"), 1.0) == (
        len(layers),
        len(layers) - 1,
    )


def refusals(layer):
    """Problem -> the file that has it, and the message about it."""
    down, up = low_rank(layer, 2, 0)
    good = {f"{layer.kohya}.lora_down.weight": down, f"{layer.kohya}.lora_up.weight": up}
    key = next(iter(good))
    flux = "lora_unet_double_blocks_0_img_attn_qkv"
    attention = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    wide = {
        f"{attention}.lora_down.weight": random(2, 2048),
        f"{attention}.lora_up.weight": random(32, 2),
    }
    return {
        "empty": ({}, "it holds no layers"),
        "whole differences": (good | {f"{layer.kohya}.diff": up}, "1 of its 3 entries cannot be"),
        "OFT": ({f"{layer.kohya}.oft_blocks": up}, "give that as pretrained.model"),
        "a bias": (good | {f"{layer.kohya}.lora_B.bias": up[:, 0]}, "lora_B.bias"),
        "embeddings": (good | {"bundle_emb.style.string_to_param.*": up}, "bundle_emb"),
        "half": ({key: down}, "has no 'up': a part of the file is missing"),
        "half of LoHa": ({f"{layer.kohya}.hada_w1_a": up}, "has no 'hada_w1_b'"),
        "half of LoKr": ({f"{layer.kohya}.lokr_w1": up}, "has no 'lokr_w2_b'"),
        "factors": (good | {key: down[:1]}, "do not fit each other"),
        "zero": (good | {f"{layer.kohya}.lora_up.weight": 0 * up}, "it changes nothing"),
        "NaN": (good | {key: down * torch.nan}, "not finite: the file is damaged"),
        "magnitudes": (
            good | {f"{layer.kohya}.dora_scale": torch.ones(3, 1)},
            "3 magnitudes for a weight of shape",
        ),
        "one layer too many": (
            good | {name.replace("down_blocks_1", "down_blocks_7"): t for name, t in good.items()},
            "1 of its 2 adapted layers exist in this model",
        ),
        "Flux": ({f"{flux}.lora_down.weight": down, f"{flux}.lora_up.weight": up}, "such as Flux"),
        "SDXL": (wide, "its text is 2048 (SDXL) wide, this model's 16"),
        "another size": (
            good | {key: down[:, :5]},
            "has another size: it was made for another kind",
        ),
    }


@pytest.mark.parametrize("what", refusals(Layer("unet", "x", nn.Linear(4, 4))))
def test_what_cannot_be_merged_exactly_is_refused_in_one_line(pipe, tmp_path, what):
    (layer,) = layers_of(pipe, ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",))
    state, words = refusals(layer)[what]
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        merged(pipe, state, tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_holds_one_lora_or_all_of_them_are_listed(tmp_path):
    with pytest.raises(ValueError, match=r"holds 0 \.safetensors files"):
        locate(str(tmp_path), None, None)
    (tmp_path / "README.md").touch()
    (tmp_path / "b.safetensors").touch()
    assert locate(str(tmp_path), None, None) == tmp_path / "b.safetensors"
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(ValueError, match=r"2 .*: a\.safetensors, b\.safetensors; name one, as"):
        locate(str(tmp_path), None, None)
    assert locate(str(tmp_path / "a.safetensors"), None, None) == tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        locate(str(tmp_path / "none"), None, None)


class FakeHub:
    """The part of `snapshot_download` that is used: a repository's files, or no network."""

    def __init__(self, folder, files=(), error=None):
        self.folder, self.files, self.error, self.asked = folder, files, error, []

    def __call__(self, name, revision=None, dry_run=False, allow_patterns=(), **options):
        self.asked.append((name, revision, tuple(allow_patterns), *options))
        if self.error is not None:
            if dry_run:
                raise DryRunError("no network") from self.error
            raise LocalEntryNotFoundError("not in the cache")
        if dry_run:
            return [NamedTuple("File", [("filename", str)])(file) for file in self.files]
        for file in set(allow_patterns) & set(self.files):
            (self.folder / file).parent.mkdir(exist_ok=True)
            (self.folder / file).touch()
        return str(self.folder)


def test_of_a_repository_one_file_is_downloaded_with_the_configuration_beside_it(
    tmp_path, monkeypatch
):
    hub = FakeHub(
        tmp_path, ["adapter_model.safetensors", "adapter_config.json", "old/x.safetensors"]
    )
    monkeypatch.setattr("ddpo.model.lora_file.snapshot_download", hub)
    assert locate("a/b", None, "v1") == tmp_path / "adapter_model.safetensors"
    patterns = ("adapter_model.safetensors", "adapter_config.json")
    assert hub.asked == [("a/b", "v1", ()), ("a/b", "v1", patterns)]
    assert (tmp_path / "adapter_config.json").is_file()
    assert locate("a/b", "old/x.safetensors", None) == tmp_path / "old" / "x.safetensors"
    assert hub.asked[2:] == [("a/b", None, ("old/x.safetensors", "old/adapter_config.json"))]
    with pytest.raises(FileNotFoundError, match=r"the repository a/b has no y\.safetensors"):
        locate("a/b", "y.safetensors", None)
    hub.files.append("another.safetensors")
    with pytest.raises(ValueError, match=r"2 .*: adapter_model\.safetensors, another\.safe"):
        locate("a/b", None, None)


class ProxyRefusedError(Exception):
    """An error of an HTTP client that no library of the hub translates."""


def test_without_a_network_the_cache_is_asked_and_no_error_is_a_stranger(tmp_path, monkeypatch):
    hub = FakeHub(tmp_path, error=ConnectionError("no network"))
    monkeypatch.setattr("ddpo.model.lora_file.snapshot_download", hub)
    with pytest.raises(LocalEntryNotFoundError, match="not in the cache"):
        locate("a/b", None, None)
    assert hub.asked[1][-1] == "local_files_only"
    hub.error = RepositoryNotFoundError("gone", response=_response())
    with pytest.raises(RepositoryNotFoundError):
        locate("a/b", None, None)

    def refuse(*_, **__):
        raise ProxyRefusedError("403")

    monkeypatch.setattr("ddpo.model.lora_file.snapshot_download", refuse)
    with pytest.raises(LocalEntryNotFoundError, match="403"):
        locate("a/b", None, None)


def _response():
    import httpx2

    return httpx2.Response(404, request=httpx2.Request("GET", "http://127.0.0.1"))


@pytest.mark.parametrize(
    ("change", "is_plain"),
    [
        ({}, True),
        ({"ranks": (4, 2)}, False),
        ({"alphas": (4.0, 2.0)}, False),
        ({"prefix": ""}, False),
        ({"prefix": "base_model.model."}, False),
        ({"extra": "dora_scale"}, False),
        ({"text": ("q_proj",)}, False),
        ({"text": ("q_proj", "out_proj")}, True),
        ({"convolution": True}, False),
    ],
)
def test_a_plain_file_is_one_that_diffusers_merges_alike(tmp_path, change, is_plain):
    """For other files, model cards load the project's own code."""
    given = {"ranks": (4, 4), "alphas": (4.0, 4.0), "prefix": "lora_unet_", "text": (), **change}
    state = {}
    keys = [f"{given['prefix']}mid_block_attentions_0_to_{name}" for name in "qk"]
    keys += [f"lora_te_text_model_encoder_layers_0_self_attn_{name}" for name in given["text"]]
    for i, key in enumerate(keys):
        shape = (given["ranks"][i % 2], 8) + ((3, 3) if "convolution" in given else ())
        state[f"{key}.lora_down.weight"] = random(*shape)
        state[f"{key}.lora_up.weight"] = random(8, shape[0])
        state[f"{key}.alpha"] = torch.tensor(given["alphas"][i % 2])
        if "extra" in given:
            state[f"{key}.{given['extra']}"] = torch.ones(8, 1)
    save_file(state, tmp_path / "l.safetensors")
    assert LoraFile.read(tmp_path / "l.safetensors").is_plain is is_plain
