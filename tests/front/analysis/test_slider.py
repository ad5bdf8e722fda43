"""A line of the front as one LoRA whose strength is a slider."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import mo_front
from ddpo.agents.adapter import Adapter
from front import Front
from front.analysis.slider import Slider, SliderPoint, direction, gap_below, write_slider
from tests.support.adapters import random_adapter
from tests.support.pipelines import draw_with_diffusers, make_tiny_pipe


def test_the_gap_below_a_front_by_hand():
    front = np.array([[1.0, 0.0, 0.5], [0.5, 0.6, 0.7]])
    assert gap_below(np.array([0.4, 0.4, 0.4]), front) == (pytest.approx(0.1), 1, 0)
    assert gap_below(np.array([0.4, 0.7, 0.4]), front)[0] == 0  # nothing dominates it
    assert gap_below(front[0], front)[0] == 0


def test_start_and_direction_draw_every_blend_of_the_line():
    """In diffusers, as ComfyUI and A1111 add LoRAs: the strengths multiply the updates."""
    first, second = random_adapter(1, rank=2), random_adapter(2, rank=4)
    both = make_tiny_pipe()
    along = direction(first, second)
    assert along.rank == 6
    along.apply(both, "direction")
    first.apply(both, "start")
    for strength in (0.5, 1.0):
        both.set_adapters(["start", "direction"], [1.0, strength])
        drawn = draw_with_diffusers(both, ["a"], [1])
        pipe = make_tiny_pipe()
        Adapter.blend([(first, 1 - strength), (second, strength)]).apply(pipe, "blend")
        torch.testing.assert_close(drawn, draw_with_diffusers(pipe, ["a"], [1]), atol=2e-4, rtol=0)


def slider_of(front, gaps, error=0.001):
    """A slider whose places lie so far below the front."""
    first, second = front.policies[0], front.policies[-1]
    points = [
        SliderPoint(
            strength=i / (len(gaps) - 1),
            returns=first.report_returns,
            std_error=first.report_std_error,
            gap=gap,
            gap_std_error=error,
        )
        for i, gap in enumerate(gaps)
    ]
    return Slider(first=first, second=second, points=tuple(points), allowed=0.1)


def test_a_line_that_leaves_the_front_is_not_near_it(finished_run):
    front = Front.load(finished_run)
    assert slider_of(front, [0, 0.09, 0]).is_near
    assert not slider_of(front, [0, 0.11, 0]).is_near
    assert slider_of(front, [0, 0.11, 0], error=0.06).is_near  # within noise
    assert slider_of(front, [0, 0.11, 0.02]).worst.strength == 0.5


@pytest.mark.parametrize("is_kohya", [True, False])
def test_the_files_are_the_start_and_the_direction(finished_run, tmp_path, is_kohya):
    front = Front.load(finished_run)
    slider = slider_of(front, [0, 0.0125, 0])
    files = write_slider(tmp_path, front, slider, is_kohya=is_kohya)
    ends = [Adapter.read(policy.file) for policy in (slider.first, slider.second)]
    pipe, ours = make_tiny_pipe(), make_tiny_pipe()
    for file, name in zip(files, ("start", "direction"), strict=True):
        with warnings.catch_warnings():  # two adapters in one UNet are what is meant
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    pipe.set_adapters(["start", "direction"], [1.0, 1.0])
    ends[1].apply(ours, "end")
    images = [draw_with_diffusers(each, ["a", "b"], [1, 2]) for each in (pipe, ours)]
    torch.testing.assert_close(*images, atol=1e-3, rtol=0)
    text = (tmp_path / "README.md").read_text()
    for part in (slider.first.id, slider.second.id, files[0].name, files[1].name, "0.0125"):
        assert part in text


def test_the_command_measures_the_line_and_says_how_far_it_is_from_the_front(
    finished_run, tmp_path, capsys
):
    front = Front.load(finished_run)
    out = tmp_path / "slider"
    ids = [policy.id for policy in front.policies[:2]]
    words = ["slider", str(finished_run), "--from", ids[0], "--to", ids[1], "--out", str(out)]
    status = mo_front.main(words)
    said = capsys.readouterr()
    rows = [line.split() for line in said.out.splitlines()[1:6]]
    assert [row[0] for row in rows] == ["0", "0.25", "0.5", "0.75", "1"]
    assert (rows[0][-1], rows[-1][-1]) == ("0", "0")  # the ends are on the front
    if status == 0:
        assert len(list(out.glob("*.safetensors"))) == 2
        assert "below the front" in said.out
    else:
        assert status == 1
        assert "leaves the front: at strength" in said.err
        assert not list(out.iterdir())


def test_a_slider_between_one_policy_and_itself_is_refused(finished_run, tmp_path, capsys):
    name = Front.load(finished_run).policies[0].id
    words = ["--from", name, "--to", name, "--out", str(tmp_path / "out")]
    assert mo_front.main(["slider", str(finished_run), *words]) == 2
    assert f"a slider needs two policies; both ends are {name}" in capsys.readouterr().err
