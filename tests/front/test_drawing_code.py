"""A model card's Python code, executed word for word, draws the pictures that were judged."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from ddpo.model.stable_diffusion import FrozenDiffusion
from front import Front
from front.export import write_folder
from front.pictures.painter import Painter
from front.publish import model_record
from front.settings import settings_of
from tests.support.adapters import random_adapter
from tests.support.original_layout import original_state_dict
from tests.support.pipelines import make_tiny_pipe, sd_scheduler

PLACE = '"path/to/this/folder"'


def code_of(folder):
    """The Python code of the card in a folder."""
    (code,) = re.findall(
        r"```python\n(.*?)```", ModelCard.load(folder / "README.md").text, re.DOTALL
    )
    return code


def execute(code, folder, place=PLACE):
    """The picture that the code draws where the base model lies, the adapter being in `folder`."""
    assert place in code
    variables = {}
    exec(compile(code.replace(place, repr(str(folder))), "card", "exec"), variables)
    return np.asarray(variables["image"]).astype(int)


def lora_file(pipe, path, ranks=(2,)):
    """A LoRA of kohya's make, at half strength, for UNet and text encoder."""
    state = {}
    generator = torch.Generator().manual_seed(0)
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_text_model_")):
        for i, (name, layer) in enumerate(getattr(pipe, part).named_modules()):
            if name.endswith(("to_q", "to_out.0", "q_proj", "out_proj")):
                rank = ranks[i % len(ranks)]
                key = prefix + name.removeprefix("text_model.").replace(".", "_")
                down = torch.randn(rank, layer.in_features, generator=generator) / 2
                up = torch.randn(layer.out_features, rank, generator=generator) / 2
                state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
                state[f"{key}.alpha"] = torch.tensor(rank / 2)
    save_file(state, path)


def judged_run(folder, finished_run, kind, changes):
    """A finished run as it were with the model in `folder` and these settings."""
    run = folder / "run"
    shutil.copytree(finished_run, run)
    config = json.loads((run / "config.json").read_text())
    config["settings"]["pretrained"]["model"] = str(folder / "model")
    for change in changes:
        section, name = change.split("=")[0].split(".")
        value = type(config["settings"][section][name])(change.split("=")[1])
        config["settings"][section][name] = value
    (run / "config.json").write_text(json.dumps(config))
    front = Front.load(run)
    random_adapter(0, kind=kind).save(front.policies[0].adapter)
    pretrained = settings_of(front).pretrained
    record = model_record(FrozenDiffusion.load(pretrained), pretrained)
    data = json.loads((run / "front.json").read_text())
    (run / "front.json").write_text(json.dumps({**data, "model": record.to_json()}))
    return Front.load(run)


def sd1(folder):
    make_tiny_pipe().save_pretrained(folder / "model")
    return []


def with_a_negative_prompt(folder):
    sd1(folder)
    return ["sample.negative_prompt=c d", "sample.guidance_scale=4.0"]


def at_another_size(folder):
    """Given one side only, diffusers would take its own size for both."""
    sd1(folder)
    return ["pretrained.height=32"]


def with_a_lora(folder):
    sd1(folder)
    lora_file(make_tiny_pipe(), folder / "style.safetensors")
    return [f"pretrained.lora={folder / 'style.safetensors'}", "pretrained.lora_scale=0.75"]


def with_a_lora_that_diffusers_merges_otherwise(folder):
    sd1(folder)
    lora_file(make_tiny_pipe(), folder / "style.safetensors", ranks=(2, 1, 3))
    return [f"pretrained.lora={folder / 'style.safetensors'}", "pretrained.lora_scale=0.75"]


def thresholding(folder):
    pipe = make_tiny_pipe()
    pipe.scheduler = sd_scheduler(thresholding=True, sample_max_value=0.5)
    pipe.save_pretrained(folder / "model")
    return []


def one_file(folder):
    pipe = make_tiny_pipe()
    pipe.save_pretrained(folder / "configuration")
    save_file(original_state_dict(pipe), folder / "model.safetensors")
    return [
        f"pretrained.model={folder / 'model.safetensors'}",
        f"pretrained.single_file_config={folder / 'configuration'}",
    ]


def sdxl(folder):
    make_tiny_pipe("sdxl").save_pretrained(folder / "model")
    return ["sample.guidance_scale=3.0"]


def sdxl_at_another_size(folder):
    return [*sdxl(folder), "pretrained.width=24", "sample.negative_prompt=c"]


def v_prediction(folder):
    make_tiny_pipe("sd2").save_pretrained(folder / "model")
    return ["sample.guidance_scale=3.0"]


CASES = {
    sd1: "sd1",
    with_a_negative_prompt: "sd1",
    at_another_size: "sd1",
    with_a_lora: "sd1",
    with_a_lora_that_diffusers_merges_otherwise: "sd1",
    thresholding: "sd1",
    one_file: "sd1",
    v_prediction: "sd2",
    sdxl: "sdxl",
    sdxl_at_another_size: "sdxl",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_code_of_a_card_draws_the_picture_that_was_judged(
    tmp_path, monkeypatch, finished_run, case
):
    """The judge draws as training does; the code is run with no word changed but the place."""
    front = judged_run(tmp_path, finished_run, CASES[case], case(tmp_path))
    policy = front.policies[0]
    painter = Painter(front, device="cpu")
    drawings = [
        painter.draw(each, front.sample_prompts[:1], front.sample_seeds[:1])[0].permute(1, 2, 0)
        for each in (None, policy)
    ]
    base, judged = (np.asarray(drawing).astype(int) for drawing in drawings)
    assert np.abs(base - judged).max() > 20
    monkeypatch.chdir(tmp_path)  # where the names in the code are
    for layout in ("diffusers", "kohya"):
        folder = tmp_path / layout
        folder.mkdir()
        write_folder(folder, front, policy, file_format=layout)
        drawn = execute(code_of(folder), folder)
        assert drawn.shape == judged.shape
        assert np.abs(drawn - judged).max() <= 1
        assert str(tmp_path) not in (folder / "README.md").read_text()
