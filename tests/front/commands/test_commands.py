"""The commands of mo_front.py on a real run: what they print, write and refuse."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import mo_front
from ddpo.agents.adapter import Adapter
from front import Front
from front.settings import settings_of
from tests.support.paths import ROOT
from tests.support.pipelines import draw_with_diffusers, make_tiny_pipe


@pytest.fixture(name="run_command")
def _run_command(capsys):
    """mo_front.main(...) -> (exit status, stdout, stderr)."""

    def run(*arguments):
        try:
            status = mo_front.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_show_prints_every_policy_and_the_quality_of_the_front(run_command, finished_run):
    front = Front.load(finished_run)
    status, out, err = run_command("show", finished_run)
    assert (status, err) == (0, "")
    for policy in front.policies:
        line = next(line for line in out.splitlines() if line.startswith(policy.id))
        value, error = re.search(r"(-?[\d.]+) ± ([\d.]+)", line).groups()
        assert float(value) == pytest.approx(policy.report_returns[0], abs=float(error))
        assert float(error) == pytest.approx(policy.report_std_error[0], rel=0.06)
        assert " kB" in line
    assert f"hypervolume       {front.hypervolume:.4f}" in out


def test_show_json_is_the_front_as_numbers(run_command, finished_run):
    front = Front.load(finished_run)
    status, out, _ = run_command("show", finished_run, "--json")
    data = json.loads(out)
    assert status == 0
    assert [entry["id"] for entry in data["policies"]] == [policy.id for policy in front.policies]
    assert data["policies"][0]["bytes"] == front.policies[0].file.stat().st_size
    for name in ("hypervolume", "sparsity", "expected_utility"):
        assert data[name] == getattr(front, name)


def test_show_imports_no_deep_learning_library(finished_run):
    code = (
        f"import sys, mo_front; mo_front.main(['show', {str(finished_run)!r}]); "
        "print({'torch', 'diffusers', 'matplotlib'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert out.stdout.splitlines()[-1] == b"set()"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["pick", "--weights", "0.3,0.6"], 2, "must sum to 1"),
        (["pick", "--weights", "a,b"], 2, "list of numbers such as 0.3,0.7"),
        (["pick"], 2, "say which policy"),
        (["pick", "--policy", "nobody"], 2, "no policy 'nobody'"),
        (["pick", "--policy", "base", "--weights", "0.5,0.5"], 2, "leave out --weights"),
        (["pick", "--at-least", "colorfulness"], 2, "bound such as aesthetic_score=5.8"),
        (["pick", "--at-least", "colorfulness=1e9"], 1, "no policy reaches"),
        (["blend", "--weights", "0.5,0.5", "--rank", "0"], 2, "whole number of at least 1"),
        (["export", "--weights", "0.5,0.5", "--out", "x", "--format", "zip"], 2, "invalid choice"),
        (["generate", "--weights", "1,0", "--prompt", "a", "--num_images", "0"], 2, "at least 1"),
        (["generate", "--weights", "1,0", "--prompt", "a", "--seed", "-1"], 2, "at least 0"),
        (["generate", "--weights", "1,0", "--prompt", "a", "--seed", str(2**62)], 2, "2**62"),
        (["generate", "--weights", "1,0", "--prompt", "a", "--guidance", "nan"], 2, "at least 1"),
        (["generate", "--weights", "1,0", "--prompt", "a", "--guidance", "-3"], 2, "at least 1"),
        (["generate", "--weights", "1,0", "--prompt", "a", "--steps", "2000"], 2, "does not fit"),
        (["compare", "--out", "x.foo"], 2, "name that ends in .png"),
        (["serve", "--port", "80000"], 2, "to 65535"),
        (["generate", "--policy", "x", "--blend", "--prompt", "a"], 2, "--weights alone"),
        (["generate", "--weights", "1,0", "--prompt", "a", "--device", "tpu9"], 2, "--device=tpu9"),
        (["what"], 2, "invalid choice"),
    ],
)
def test_a_wrong_question_gets_a_message_and_an_exit_code(
    run_command, finished_run, arguments, status, message
):
    got, _, err = run_command(arguments[0], finished_run, *arguments[1:])
    assert got == status
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["shwo", "x"], "show"),
        (["Pick", "x"], "pick"),
        (["pick", "x", "--weigths", "1,0"], "--weights"),
        (["pick", "x", "--at_leat=a=1"], "--at-least"),
        (["generate", "x", "--policy", "a", "--promt", "a"], "--prompt"),
    ],
)
def test_a_misspelt_word_gets_a_suggestion(run_command, words, meant):
    status, _, err = run_command(*words)
    assert (status, err.splitlines()[-1]) == (2, f"did you mean {meant}?")


def test_a_word_like_no_other_gets_none(run_command):
    assert "did you mean" not in run_command("xyzzy", "x")[2]


def test_a_missing_run_ends_with_1_and_no_traceback(run_command, tmp_path):
    status, out, err = run_command("show", tmp_path / "nowhere")
    assert (status, out) == (1, "")
    assert err.endswith("is not a folder; give the run directory that training made\n")


def test_pick_writes_a_folder_that_draws_the_policy_in_a_fresh_pipeline(
    run_command, finished_run, tmp_path
):
    front = Front.load(finished_run)
    policy = front.pick(weights=(1, 0))
    status, out, _ = run_command("pick", finished_run, "--weights", "1,0", "--out", tmp_path / "p")
    assert status == 0
    assert out.startswith(policy.id)
    folder, ours = make_tiny_pipe(), make_tiny_pipe()
    folder.load_lora_weights(tmp_path / "p")
    policy.apply(ours)
    images = draw_with_diffusers(folder, ["a"], [1])
    assert torch.equal(images, draw_with_diffusers(ours, ["a"], [1]))
    assert not torch.equal(images, draw_with_diffusers(make_tiny_pipe(), ["a"], [1]))
    status, _, err = run_command("pick", finished_run, "--weights", "1,0", "--out", tmp_path / "p")
    assert status == 1
    assert "is not empty; give a new folder, or --force" in err


def parsed(path):
    """The prompt, the negative prompt and the pairs of the last line, as A1111 reads a PNG file."""
    with Image.open(path) as file:
        *lines, last = file.info["parameters"].split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    negative = [line.removeprefix("Negative prompt: ") for line in lines[1:]]
    return lines[0], negative, {name: value.strip('"') for name, value in pairs}


def test_an_export_has_a_preview_that_says_what_it_was_drawn_from(
    run_command, finished_run, tmp_path
):
    front = Front.load(finished_run)
    policy = next(policy for policy in front.policies if policy.id != "base")
    out = tmp_path / "out"
    choice = ["export", finished_run, "--policy", policy.id, "--out", out]
    status, _, err = run_command(*choice, "--format", "kohya")
    assert status == 0, err
    (file,) = out.glob("*.safetensors")
    assert stat.filemode(file.stat().st_mode) == "-rw-r--r--"
    prompt, negative, pairs = parsed(out / f"{file.stem}.preview.png")
    assert (prompt, negative) == (front.sample_prompts[0], [])
    assert pairs["Seed"] == str(front.sample_seeds[0])
    assert (pairs["Steps"], pairs["CFG scale"], pairs["Size"]) == ("4", "1", "16x16")
    assert (pairs["Sampler"], pairs["Schedule type"]) == ("Euler a", "DDIM")
    assert pairs["Policy"] == policy.id
    assert pairs["Policy weights"].startswith(f"colorfulness {policy.weights[0]:.2f}, jpeg_")
    card = (out / "README.md").read_text()
    assert card.index("## In ComfyUI") < card.index("## In Python")
    for name in ("images/1.png", "samples.png"):
        assert parsed(out / name)[2]["Policy"] == policy.id

    assert run_command(*choice)[0] == 1  # a used folder
    status, _, err = run_command(*choice, "--force", "--format", "diffusers")
    assert status == 0, err
    assert not file.exists()
    assert (out / "pytorch_lora_weights.preview.png").is_file()
    weights = out / "pytorch_lora_weights.safetensors"
    assert stat.filemode(weights.stat().st_mode) == "-rw-r--r--"
    for name in ("mine.txt", "README.md"):
        (out / name).write_text("mine")
        status, _, err = run_command(*choice, "--force")
        assert (status, name in err) == (1, True)
        assert (out / name).read_text() == "mine"
        assert weights.exists()


def test_pick_warns_of_an_objective_that_is_lost(run_command, run_copy):
    record = json.loads((run_copy / "front.json").read_text())
    base, policy = record["base"], record["policies"][0]
    base["report_std_error"] = policy["report_std_error"] = [0.3, 0.3]
    base["report_returns"] = [value + 0.7 for value in policy["report_returns"]]
    (run_copy / "front.json").write_text(json.dumps(record))
    choice = ["pick", run_copy, "--policy", policy["id"]]
    assert "warning" not in run_command(*choice)[1]  # below two standard errors of the difference
    base["report_returns"][1] += 0.3
    (run_copy / "front.json").write_text(json.dumps(record))
    (line,) = [line for line in run_command(*choice)[1].splitlines() if "warning" in line]
    assert line.startswith("warning: jpeg_compressibility is worse than the base model's: ")


def test_a_model_card_says_what_a_stranger_needs(run_command, finished_run, tmp_path):
    front = Front.load(finished_run)
    run_command("pick", finished_run, "--weights", "1,0", "--out", tmp_path / "p")
    card = ModelCard.load(tmp_path / "p" / "README.md")
    data = card.data
    assert data.library_name == "diffusers"
    assert {"lora", "text-to-image", "diffusers"} <= set(data.tags)
    assert data.instance_prompt == front.sample_prompts[0] == "e"
    assert data.license == "other"
    assert data.base_model is None  # a folder is no model on a hub
    for entry in data.widget:
        assert pixels(tmp_path / "p" / entry["output"]["url"]).shape == (16, 16, 3)
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert pixels(tmp_path / "p" / picture).size > 0
    for policy in front.policies:
        assert f"| {policy.id} |" in card.text
    assert "alpha 6" in card.text
    assert str(finished_run.parent) not in str(card)  # no path of this machine
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
    compile(code, "card", "exec")
    assert "num_inference_steps=4, guidance_scale=1.0, eta=1.0" in code


def test_a_card_names_a_base_model_on_the_hub_with_its_licence(run_copy, tmp_path):
    from front.cards import write_adapter_card

    config = json.loads((run_copy / "config.json").read_text())
    model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    config["settings"]["pretrained"]["model"] = model
    (run_copy / "config.json").write_text(json.dumps(config))
    front = Front.load(run_copy)
    member = front.policies[0]
    write_adapter_card(tmp_path, front, member, Adapter.of(member), repo="me/mine")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == model
    assert card.data.license == "creativeml-openrail-m"
    assert f'from_pretrained( "{model}", safety_checker=None' in " ".join(card.text.split())
    assert 'load_lora_weights("me/mine"' in card.text


def test_the_embedded_model_s_licence_comes_from_its_card():
    from front.cards import licence_of

    assert licence_of("emoji-sd") == "other"
    assert licence_of("someone/unknown") is None


def test_blend_writes_the_exact_blend_or_a_reduced_one(run_command, finished_run, tmp_path):
    front = Front.load(finished_run)
    weights = next(w for w in np.linspace(0.05, 0.95, 37) if len(front.blend((w, 1 - w)).parts) > 1)
    blend = front.blend((weights, 1 - weights))
    choice = ["--weights", f"{weights},{1 - weights}"]
    status, out, _ = run_command("blend", finished_run, *choice, "--out", tmp_path / "exact")
    assert status == 0
    assert "rank 8, exact" in out
    adapter = Adapter.read(tmp_path / "exact" / "pytorch_lora_weights.safetensors")
    for layer in adapter.matrices:
        expected = sum(share * Adapter.of(policy).update(layer) for policy, share in blend.parts)
        torch.testing.assert_close(adapter.update(layer), expected, rtol=1e-6, atol=1e-6)
    status, out, _ = run_command(
        "blend", finished_run, *choice, "--rank", 2, "--out", tmp_path / "reduced"
    )
    assert status == 0
    assert re.search(r"rank 2, reduced with a relative error of 0\.\d", out)
    assert "reduced to rank 2" in (tmp_path / "reduced" / "README.md").read_text()
    assert Adapter.read(tmp_path / "reduced" / "pytorch_lora_weights.safetensors").rank == 2


def test_a_policy_of_reduced_rank_is_not_said_to_be_as_good_as_it_was(
    run_command, finished_run, tmp_path
):
    policy = Front.load(finished_run).blend((1, 0)).parts[0][0]
    arguments = ["--weights", "1,0", "--rank", 1, "--out", tmp_path]
    status, out, _ = run_command("blend", finished_run, *arguments)
    assert status == 0
    assert "not measured" in out
    assert re.search(r"rank 1, reduced with a relative error of 0\.\d", out)
    card = (tmp_path / "README.md").read_text()
    assert re.search(rf"It is {policy.id}, reduced to rank 1 with a relative error of 0\.\d", card)
    assert "How good it is" not in card


@pytest.mark.parametrize("file_format", ["diffusers", "kohya"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_an_export_draws_the_policy_in_a_fresh_pipeline(
    run_command, finished_run, tmp_path, file_format, dtype
):
    policy = Front.load(finished_run).pick(weights=(1, 0))
    arguments = ["--policy", policy.id, "--format", file_format, "--dtype", dtype]
    status, out, _ = run_command("export", finished_run, *arguments, "--out", tmp_path / "out")
    assert status == 0
    file = Path(re.search(r"wrote (\S+\.safetensors)", out)[1])
    fresh, ours = make_tiny_pipe(), make_tiny_pipe()
    fresh.load_lora_weights(file.parent, weight_name=file.name)
    policy.apply(ours)
    images, expected = (draw_with_diffusers(pipe, ["a", "b"], [1, 2]) for pipe in (fresh, ours))
    if dtype == "fp32":
        assert torch.equal(images, expected)
    else:
        torch.testing.assert_close(images, expected, rtol=0, atol=1 / 255)
    assert f'weight_name="{file.name}"' in (file.parent / "README.md").read_text()


def test_generate_draws_the_policy_and_the_base_model_from_the_same_seeds(
    run_command, run_copy, tmp_path
):
    front = Front.load(run_copy)
    policy = front.pick(weights=(1, 0))
    arguments = ["--weights", "1,0", "--prompt", "a", "--prompt", "b c", "--num_images", 2]
    status, out, err = run_command("generate", run_copy, *arguments, "--seed", 5)
    assert status == 0, err
    folder = run_copy / "generated"
    (sheet,) = folder.glob(f"sheet_{policy.id}_a-*_5-6.png")
    assert f"wrote {sheet}" in out
    assert len(list(folder.iterdir())) == 2 * 4 + 1
    pipe = make_tiny_pipe()
    for name in ("base", policy.id):
        if name != "base":
            policy.apply(pipe)
        images = draw_with_diffusers(
            pipe, ["a", "a", "b c", "b c"], [5, 6, 5, 6], guidance_scale=1.0
        )
        expected = images.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
        for image, key in zip(expected, ["a_5", "a_6", "b-c-*_5", "b-c-*_6"], strict=True):
            (file,) = folder.glob(f"{name}_{key}.png")
            prompt, _, pairs = parsed(file)
            assert prompt == ("a" if key.startswith("a") else "b c")
            assert (pairs["Seed"], pairs["Policy"]) == (key[-1], name.replace("base", "base model"))
            np.testing.assert_array_equal(pixels(file), image)


def test_other_pictures_get_files_of_their_own_and_the_same_the_same(
    run_command, finished_run, tmp_path
):
    names = []
    for changes in (
        ["--prompt", "猫", "--prompt", "собака", "--prompt", "a", "--prompt", "a"],
        ["--prompt", "A", "--prompt", "?", "--prompt", "??", "--prompt", "a" * 99],
        ["--prompt", "a", "--steps", 2],
        ["--prompt", "a", "--steps", 2, "--guidance", 3],
        ["--prompt", "a", "--steps", 2],
    ):
        arguments = ["--weights", "1,0", *changes, "--num_images", 1, "--out", tmp_path]
        status, _, err = run_command("generate", finished_run, *arguments)
        assert status == 0, err
        names.append({path.name for path in tmp_path.iterdir()})
    assert [len(found) for found in names] == [7, 16, 19, 22, 22]  # two of a prompt, and a sheet
    assert {"base_猫_0.png", "base_собака_0.png", "base_a_0.png"} < names[0]


def test_a_folder_that_cannot_be_made_does_not_cost_the_drawing(
    run_command, finished_run, tmp_path, monkeypatch
):
    monkeypatch.setattr("front.pictures.generate.Painter", None)
    (tmp_path / "file").touch()
    arguments = ["--weights", "1,0", "--prompt", "a", "--out", tmp_path / "file" / "out"]
    status, _, err = run_command("generate", finished_run, *arguments)
    assert status == 1
    assert "out cannot be written to" in err


def test_generate_takes_other_sampler_settings_and_a_model_that_moved(
    run_command, run_copy, tmp_path
):
    config = json.loads((run_copy / "config.json").read_text())
    model = config["settings"]["pretrained"]["model"]
    config["settings"]["pretrained"]["model"] = "/moved/away"
    (run_copy / "config.json").write_text(json.dumps(config))
    arguments = ["--weights", "0.5,0.5", "--blend", "--prompt", "a", "--num_images", 1]
    status, _, err = run_command("generate", run_copy, *arguments)
    assert status == 1
    assert "pretrained.model='/moved/away' could not be loaded" in err
    options = ["--model", model, "--steps", 2, "--guidance", 3, "--out", tmp_path / "out"]
    status, _, err = run_command("generate", run_copy, *arguments, *options)
    assert status == 0, err
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0}
    image = draw_with_diffusers(make_tiny_pipe(), ["a"], [0], **settings)[0]
    expected = image.mul(255).round().byte().permute(1, 2, 0).numpy()
    (file,) = (tmp_path / "out").glob("base_a-*_0.png")
    np.testing.assert_array_equal(pixels(file), expected)


def test_a_run_older_than_evaluation_num_steps_is_drawn_with_its_own_steps(run_copy):
    config = json.loads((run_copy / "config.json").read_text())
    config["settings"]["sample"]["num_steps"] = 50
    del config["settings"]["evaluation"]["num_steps"]
    (run_copy / "config.json").write_text(json.dumps(config))
    assert settings_of(Front.load(run_copy)).evaluation_sample.num_steps == 50


def test_memory_that_runs_out_is_a_message(run_command, finished_run, monkeypatch):
    def run_out(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("front.pictures.generate.Painter", run_out)
    arguments = ["--weights", "1,0", "--prompt", "a"]
    status, _, err = run_command("generate", finished_run, *arguments)
    assert status == 1
    assert "lower --rows-per-pass" in err


def test_a_folder_that_cannot_be_written_to_is_a_message(run_command, finished_run, monkeypatch):
    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("front.export.write_adapter_card", no_space)
    out = finished_run.parent / "full"
    status, _, err = run_command("export", finished_run, "--weights", "1,0", "--out", out)
    assert status == 1
    assert "No space left" in err


def test_a_tilde_is_the_home_directory_in_every_path(monkeypatch, tmp_path):
    """Shells expand `--out ~/x`, and leave `--out=~/x` to the program."""
    monkeypatch.setenv("HOME", str(tmp_path))
    choice = ["~/run", "--weights=0.5,0.5"]
    for words in (
        ["pick", *choice, "--out=~/out"],
        ["blend", *choice, "--out=~/out"],
        ["export", *choice, "--out=~/out"],
        ["generate", *choice, "--prompt=~", "--out=~/out", "--model=~/model"],
        ["compare", "~/run", "~/run", "--out=~/out.png"],
        ["show", "~/run"],
        ["report", "~/run"],
        ["serve", "~/run", "--model=~/model"],
        ["analyse", "~/run", "--model=~/model"],
        ["transfer", "~/run", "--model=~/model"],
        ["slider", "~/run", "--out=~/out"],
        ["push", *choice, "--repo=a/b"],
    ):
        args = vars(mo_front.make_parser().parse_args(words))
        paths = [args.get(name) for name in ("run", "out", "model")] + args.get("runs", [])
        given = [path for path in paths if path is not None and path != ""]
        assert len(given) == sum("~/" in word for word in words)
        assert all(str(path).startswith(f"{tmp_path}/") for path in given)
        assert args.get("prompt", ["~"]) in (["~"], "~")


@pytest.mark.parametrize("folder", ["front", "benchmarks", "tools"])
def test_no_argument_takes_a_path_as_it_is(folder):
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py")]
    assert not any("type=Path" in source for source in sources)
