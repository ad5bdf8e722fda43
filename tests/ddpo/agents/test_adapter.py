"""Adapters as values: exact blends, reduced ranks, and other programs' layouts."""

from __future__ import annotations

import io
import json
import pickle
import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file

from ddpo.agents.adapter import Adapter, AdapterError
from ddpo.agents.lora import target_layers
from ddpo.cost.footprint import known_architecture
from tests.support.adapters import TARGETS, random_adapter
from tests.support.pipelines import draw_with_diffusers, make_tiny_pipe

TEXTS, SEEDS = ["a", "b", "c"], [3, 4, 5]


def draw(folder_or_apply, kind="sd1", **options):
    """Pictures of a fresh pipeline with an adapter."""
    pipe = make_tiny_pipe(kind)
    if callable(folder_or_apply):
        folder_or_apply(pipe)
    else:
        pipe.load_lora_weights(folder_or_apply, **options)
    return draw_with_diffusers(pipe, TEXTS, SEEDS)


def test_an_adapter_returns_from_its_file_bit_for_bit(tmp_path):
    adapter = random_adapter(0, rank=3, alpha=5.0)
    again = Adapter.read(adapter.save(tmp_path))
    assert (again.rank, again.alpha, set(again.target_modules)) == (3, 5.0, set(TARGETS))
    assert again.matrices.keys() == adapter.matrices.keys()
    for name, (a, b) in adapter.matrices.items():
        assert torch.equal(again.matrices[name][0], a)
        assert torch.equal(again.matrices[name][1], b)


def test_peft_s_configuration_has_no_field_that_peft_0_17_does_not_know(tmp_path):
    """LoraConfig refuses fields of a later release, and files are read with any."""
    file = random_adapter(0, rank=3, alpha=5.0).save(tmp_path)
    with safe_open(file, framework="pt") as opened:
        written = json.loads(opened.metadata()["lora_adapter_metadata"])
    config = {name.removeprefix("unet."): value for name, value in written.items()}
    assert config == {
        "r": 3,
        "lora_alpha": 5.0,
        "target_modules": sorted(TARGETS),
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": False,
        "peft_type": "LORA",
        "use_dora": False,
        "use_rslora": False,
    }
    assert LoraConfig(**config).r == 3


def test_a_blend_is_the_weighted_sum_of_the_updates():
    parts = [(random_adapter(0), 0.3), (random_adapter(1, rank=2, alpha=1.0), 0.7)]
    blend = Adapter.blend(parts)
    assert blend.rank == 6
    for name in blend.matrices:
        expected = sum(share * adapter.update(name) for adapter, share in parts)
        torch.testing.assert_close(blend.update(name), expected, rtol=1e-6, atol=1e-6)
    # averaging A and B apart, the usual mistake, is far from it
    (a1, b1), (a2, b2) = (random_adapter(seed).matrices[name] for seed in (0, 1))
    wrong = 1.5 * (0.3 * b1 + 0.7 * b2) @ (0.3 * a1 + 0.7 * a2)
    right = 1.5 * (0.3 * b1 @ a1 + 0.7 * b2 @ a2)
    assert (wrong - right).norm() > 0.1 * right.norm()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_a_blend_draws_what_diffusers_draws_with_both_adapters_together(tmp_path):
    first, second = random_adapter(0), random_adapter(1, rank=2, alpha=1.0)
    first.save(tmp_path / "first")
    second.save(tmp_path / "second")
    pipe = make_tiny_pipe()
    for name in ("first", "second"):
        pipe.load_lora_weights(tmp_path / name, adapter_name=name)
    pipe.set_adapters(["first", "second"], [0.3, 0.7])
    both = draw_with_diffusers(pipe, TEXTS, SEEDS)
    blend = Adapter.blend([(first, 0.3), (second, 0.7)])
    blend.save(tmp_path / "blend")
    images = draw(tmp_path / "blend")
    torch.testing.assert_close(images, both, rtol=0, atol=1e-5)
    assert (images - draw(tmp_path / "first")).abs().max() > 1e-2


def test_a_blend_of_one_is_the_adapter_itself():
    adapter = random_adapter(0)
    assert Adapter.blend([(adapter, 1.0)]) is adapter


def test_adapters_of_different_layers_are_not_blended():
    adapter = random_adapter(0)
    fewer = Adapter(
        matrices=dict(list(adapter.matrices.items())[1:]), rank=4, alpha=6.0, target_modules=TARGETS
    )
    with pytest.raises(AdapterError, match="same layers"):
        Adapter.blend([(adapter, 0.5), (fewer, 0.5)])


def test_reducing_keeps_the_largest_singular_values_and_states_its_error():
    blend = Adapter.blend([(random_adapter(0), 0.3), (random_adapter(1), 0.7)])
    reduced, error = blend.reduced(3)
    assert (reduced.rank, reduced.scale) == (3, 1.0)
    squares = torch.zeros(2, dtype=torch.float64)
    for name in blend.matrices:
        full = blend.update(name).double()
        u, s, vh = torch.linalg.svd(full)  # the slow way: of the whole update
        best = u[:, :3] * s[:3] @ vh[:3]
        torch.testing.assert_close(reduced.update(name).double(), best, rtol=0, atol=1e-5)
        difference = reduced.update(name).double() - full
        squares += torch.stack([difference.square().sum(), full.square().sum()])
    assert error == pytest.approx((squares[0] / squares[1]).sqrt().item(), rel=1e-4)
    assert 0.1 < error < 1


def test_reducing_to_the_true_rank_loses_nothing_and_never_raises_a_rank():
    adapter = random_adapter(0)
    twice = Adapter.blend([(adapter, 0.5), (adapter, 0.5)])
    reduced, error = twice.reduced(4)
    assert error < 1e-6
    for name in adapter.matrices:
        torch.testing.assert_close(reduced.update(name), adapter.update(name), rtol=0, atol=1e-5)
    assert adapter.reduced(9) == (adapter, 0.0)
    with pytest.raises(AdapterError, match="rank=0 must be at least 1"):
        adapter.reduced(0)


def test_reducing_to_a_rank_above_a_layers_width_is_exact_there():
    blend = Adapter.blend([(random_adapter(0, rank=24), 0.3), (random_adapter(1, rank=24), 0.7)])
    narrow = [name for name, (a, b) in blend.matrices.items() if min(a.shape[1], len(b)) < 40]
    reduced, _ = blend.reduced(40)
    assert narrow
    for name, (a, b) in reduced.matrices.items():
        assert (a.shape[0], b.shape[1]) == (40, 40)
        if name in narrow:
            torch.testing.assert_close(reduced.update(name), blend.update(name))


def test_kohya_has_the_names_and_the_alpha_that_other_programs_look_for(tmp_path):
    adapter = random_adapter(0)
    file = adapter.save_kohya(tmp_path / "deep" / "adapter.safetensors")
    state = load_file(file)
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert torch.equal(state[f"{name}.lora_down.weight"], adapter.matrices[layer][0])
    assert torch.equal(state[f"{name}.lora_up.weight"], adapter.matrices[layer][1])
    assert state[f"{name}.alpha"] == 6.0
    assert len(state) == 3 * len(adapter.matrices)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "6.0")


@pytest.mark.parametrize(
    ("width", "version"), [(768, "sd_v1"), (1024, "sd_v2"), (2048, "sdxl_base_v1-0")]
)
def test_kohya_names_the_family_of_the_base_model(tmp_path, width, version):
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    matrices = {layer: (torch.zeros(1, width), torch.zeros(8, 1))}
    adapter = Adapter(matrices=matrices, rank=1, alpha=1.0, target_modules=("to_k",))
    with safe_open(adapter.save_kohya(tmp_path / "a.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == version
    assert metadata["ss_v2"] == str(version == "sd_v2")
    assert metadata["modelspec.architecture"].endswith("/lora")


def test_kohya_says_what_a_base_model_predicts(tmp_path):
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    adapter = Adapter(
        matrices={layer: (torch.zeros(1, 1024), torch.zeros(8, 1))},
        rank=1,
        alpha=1.0,
        target_modules=("to_k",),
    )

    def said(**base):
        with safe_open(adapter.save_kohya(tmp_path / "a", **base), framework="pt") as file:
            found = file.metadata()
        names = ("modelspec.prediction_type", "ss_zero_terminal_snr", "modelspec.architecture")
        return tuple(found.get(name) for name in names)

    assert said() == ("epsilon", "False", "stable-diffusion-v2-512/lora")
    v = said(prediction_type="v_prediction", zero_snr=True)
    assert v == ("v", "True", "stable-diffusion-v2-768-v/lora")
    assert said(prediction_type="sample")[0] is None


# SDXL's blocks with attention, by their authors' names, and how many transformer blocks each has.
SDXL_DEPTHS = (
    {f"input_blocks_{i}_1": 2 for i in (4, 5)}
    | {f"input_blocks_{i}_1": 10 for i in (7, 8)}
    | {"middle_block_1": 10}
    | {f"output_blocks_{i}_1": 10 for i in (0, 1, 2)}
    | {f"output_blocks_{i}_1": 2 for i in (3, 4, 5)}
)


def kohya_names():
    """lora_unet_ and a module's name in sd-scripts' own UNet for SDXL, for each projection."""
    return {
        f"lora_unet_{block}_transformer_blocks_{i}_attn{attention}_{projection}"
        for block, depth in SDXL_DEPTHS.items()
        for i in range(depth)
        for attention in (1, 2)
        for projection in ("to_q", "to_k", "to_v", "to_out_0")
    }


def comfyui_weight(layer):
    """The weight of ComfyUI's UNet that equals a layer of diffusers, by its table for SDXL."""
    where, *numbers = re.fullmatch(
        r"(down|mid|up)_blocks?\.?(\d*)\.attentions\.(\d+)\.(.*)", layer
    ).groups()
    block, attention, rest = numbers
    if where == "mid":
        return f"diffusion_model.middle_block.1.{rest}.weight"
    if where == "down":  # two layers per block, and one that halves the size; the first block is 0
        return f"diffusion_model.input_blocks.{1 + 3 * int(block) + int(attention)}.1.{rest}.weight"
    return f"diffusion_model.output_blocks.{3 * int(block) + int(attention)}.1.{rest}.weight"


@pytest.fixture(scope="module", name="sdxl_layers")
def _sdxl_layers():
    """SDXL's layers by name, published size, without memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(known_architecture("sdxl")["unet"])
    return target_layers(unet, TARGETS)


def test_an_adapter_of_sdxl_has_kohyas_own_names_in_kohyas_layout(tmp_path, sdxl_layers):
    matrices = {
        name: (torch.full((1, layer.in_features), float(i)), torch.ones(layer.out_features, 1))
        for i, (name, layer) in enumerate(sdxl_layers.items())
    }
    adapter = Adapter(matrices=matrices, rank=1, alpha=1.0, target_modules=TARGETS)
    state = load_file(adapter.save_kohya(tmp_path / "a.safetensors"))
    assert {name.partition(".")[0] for name in state} == kohya_names()
    assert len(kohya_names()) == 560
    # ComfyUI's key map: lora_unet_ + a weight's name, with underscores
    for layer, (a, _) in matrices.items():
        weight = comfyui_weight(layer).removeprefix("diffusion_model.").removesuffix(".weight")
        key = f"lora_unet_{weight.replace('.', '_')}.lora_down.weight"
        assert torch.equal(state[key], a), layer
    part = {n: pair for n, pair in matrices.items() if n.startswith("up_blocks.1.attentions.0.")}
    targets = ("up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",)
    few = Adapter(matrices=part, rank=1, alpha=1.0, target_modules=targets)
    names = load_file(few.save_kohya(tmp_path / "few.safetensors"))
    assert all(name.startswith("lora_unet_output_blocks_3_1_") for name in names)


def test_every_layout_draws_the_same_pictures_in_a_fresh_pipeline(tmp_path):
    """float32 bit for bit; float16 within 1/255, so that no 8-bit value moves by more than 1."""
    adapter = random_adapter(0)
    pictures = draw(lambda pipe: adapter.apply(pipe, "mine"))
    assert (pictures - draw(lambda _: None)).abs().max() > 1e-2
    adapter.save(tmp_path / "diffusers")
    assert torch.equal(draw(tmp_path / "diffusers"), pictures)
    adapter.save_kohya(tmp_path / "kohya" / "a.safetensors")
    assert torch.equal(draw(tmp_path / "kohya", weight_name="a.safetensors"), pictures)
    half = adapter.to(torch.float16)
    half.save(tmp_path / "half")
    half.save_kohya(tmp_path / "half-kohya" / "a.safetensors")
    for images in (
        draw(tmp_path / "half"),
        draw(tmp_path / "half-kohya", weight_name="a.safetensors"),
    ):
        torch.testing.assert_close(images, pictures, rtol=0, atol=1 / 255)
        assert not torch.equal(images, pictures)


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_kohya_adapters_of_other_families_draw_the_same_pictures(tmp_path, kind):
    adapter = random_adapter(0, kind=kind)
    pictures = draw(lambda pipe: adapter.apply(pipe, "mine"), kind)
    adapter.save_kohya(tmp_path / "a.safetensors")
    assert torch.equal(draw(tmp_path, kind, weight_name="a.safetensors"), pictures)
    assert (pictures - draw(lambda _: None, kind)).abs().max() > 1e-2


def test_what_half_precision_cannot_hold_is_refused():
    adapter = random_adapter(0)
    next(iter(adapter.matrices.values()))[0][0, 0] = 1e6
    with pytest.raises(AdapterError, match="cannot hold; use fp32"):
        adapter.to(torch.float16)


def test_applying_again_replaces_and_leaves_other_adapters_loaded(tmp_path):
    pipe = make_tiny_pipe()
    random_adapter(2).save(tmp_path)
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    for seed in (0, 1):
        random_adapter(seed).apply(pipe, "front")
    images = draw_with_diffusers(pipe, TEXTS, SEEDS)
    assert torch.equal(images, draw(lambda fresh: random_adapter(1).apply(fresh, "front")))
    assert pipe.get_list_adapters() == {"unet": ["style", "front"]}
    assert pipe.get_active_adapters() == ["front"]


def test_an_adapter_of_another_model_is_refused():
    other = make_tiny_pipe(block_out_channels=(16, 48))
    with pytest.raises(AdapterError, match="does not fit this pipeline"):
        random_adapter(0).apply(other, "front")
    deeper = random_adapter(0)
    matrices = {f"no.{name}": pair for name, pair in deeper.matrices.items()}
    strange = Adapter(matrices=matrices, rank=4, alpha=6.0, target_modules=TARGETS)
    with pytest.raises(AdapterError, match="does not fit this pipeline"):
        strange.apply(make_tiny_pipe(), "front")


@pytest.mark.parametrize("damage", ["truncate", "empty", "foreign", "extra"])
def test_a_file_that_is_no_whole_adapter_is_named(tmp_path, damage):
    from safetensors.torch import save_file

    file = random_adapter(0).save(tmp_path)
    data = file.read_bytes()
    if damage == "foreign":
        save_file({"x": torch.zeros(1)}, file)
    elif damage == "extra":
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        save_file({**load_file(file), "text_encoder.x": torch.zeros(1)}, file, metadata)
    else:
        file.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"")
    with pytest.raises(AdapterError, match=f"{file.name} is not a whole adapter"):
        Adapter.read(file)


class Touch:
    """A pickle of it writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (self.path.touch, ())


def test_a_pickle_in_an_adapters_place_has_no_effect(tmp_path):
    trap = tmp_path / "written"
    path = tmp_path / "pytorch_lora_weights.safetensors"
    for data in (pickle.dumps(Touch(trap)), _torch_bytes(Touch(trap))):
        path.write_bytes(data)
        with pytest.raises(AdapterError, match="is not a whole adapter"):
            Adapter.read(path)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Touch(trap)))
    assert trap.exists()  # the trap works


def _torch_bytes(value):
    file = io.BytesIO()
    torch.save({"weights": value}, file)
    return file.getvalue()
