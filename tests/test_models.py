"""The whole program on a base model of each family, and the published models it has to fit."""

from __future__ import annotations

import json

import pytest

from tests.support.cases import few
from tests.support.pipelines import KINDS, load_plain, make_tiny_pipe
from tests.support.worlds import report_colorfulness, run_program, world_around


def train(folder, *overrides):
    """One warm-up generation of the smoke recipe on the model saved in `folder`."""
    changes = (
        "sample.guidance_scale=3",
        "evolution.evolutionary_generations=0",
        "run_name=run",
        *overrides,
    )
    run_program(world_around(folder), *changes)
    return folder / "logs" / "run"


# tests/test_program.py tries the same of 1.x, and tests/front/test_export.py of all below it.
@pytest.mark.parametrize("kind", few(KINDS, ["sdxl"]))
def test_the_program_trains_each_family_and_its_adapters_draw_what_was_judged(tmp_path, kind):
    make_tiny_pipe(kind).save_pretrained(tmp_path / "model")
    run = train(tmp_path, "pretrained.offload_text_encoders=True")
    front = json.loads((run / "front.json").read_text())
    member = next(policy for policy in front["policies"] if policy["id"] != "base")
    pipe = load_plain(tmp_path / "model")
    pipe.load_lora_weights(run / member["adapter"])
    judged = member["report_returns"][0]
    assert report_colorfulness(pipe, guidance_scale=3.0) == pytest.approx(judged, rel=1e-5)
    assert abs(judged - front["base"]["report_returns"][0]) > 0.05
