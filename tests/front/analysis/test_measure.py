"""Blends measured along a real front, and the conclusions from the numbers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mo_front
from front import Front
from front.analysis.measure import analyse, spread_points
from front.analysis.values import Analysis, Link, MeasuredBlend
from front.errors import FrontError
from front.member import Blend
from front.record import FrontRecord
from morl.indicators import hypervolume
from morl.objectives import to_z
from run.samples import read_samples
from tests.support.pipelines import draw_with_diffusers, make_tiny_pipe
from tests.support.worlds import report_colorfulness


@pytest.fixture(scope="module", name="analysed")
def _analysed(finished_run, tmp_path_factory):
    """A run after `analyse --points 2`, with a guard."""
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("analysed") / "run"))
    config = json.loads((run / "config.json").read_text())
    config["settings"]["guards"] = {"names": ["brightness"], "max_drops": [0.01]}
    (run / "config.json").write_text(json.dumps(config))
    assert mo_front.main(["analyse", str(run), "--points", "2"]) == 0
    return run


def test_measuring_the_policies_again_gives_the_published_numbers(finished_run):
    front = Front.load(finished_run)
    analysis, evaluations = analyse(front, 1)
    for policy in front.policies:
        again = evaluations[policy.id]
        np.testing.assert_allclose(again.returns, policy.report_returns, rtol=1e-4)
        # a rounding may flip the last bit of a pixel, and with it bytes of a JPEG
        np.testing.assert_allclose(again.std_error, policy.report_std_error, rtol=0.05)
    assert len(analysis.links) == len(front.policies) - 1  # two objectives: a chain
    names = {policy.id for policy in front.policies} | {"base"}
    assert analysis.num_images == 16 * (len(names) + len(front.policies) - 1)
    base = evaluations["base"]
    np.testing.assert_allclose(base.returns, front.base.report_returns, rtol=1e-4)


def test_a_run_ends_with_blends_that_are_worth_what_analyse_measures(make_run):
    # as many pictures as a rounding needs that flips the last bit of a pixel, and a byte of a JPEG
    run = make_run("blended", "evaluation.blends_fraction=0.15", "evaluation.report_images=16")
    front = Front.load(run)
    record = json.loads((run / "analysis.json").read_text())
    ended = {
        tuple((part["policy"], round(part["coefficient"], 6)) for part in blend["parts"]): blend
        for link in record["links"]
        for blend in link["blends"]
    }
    budget = 0.15 * front.costs.unet_rows / (16 * 4)  # a blend is 16 pictures of 4 rows
    assert 1 <= len(ended) <= budget
    assert record["images"] == 16 * len(ended)
    analysis, _ = analyse(front, max(len(link["blends"]) for link in record["links"]))
    again = {
        tuple((policy.id, round(share, 6)) for policy, share in each.blend.parts): each
        for link in analysis.links
        for each in link.blends
    }
    assert ended.keys() & again.keys()
    for parts in ended.keys() & again.keys():
        returns = again[parts].blend.report_returns
        np.testing.assert_allclose(ended[parts]["report_returns"], returns, rtol=1e-4)
    for blend in front.blends:
        assert len(read_samples(run, "report", blend.id, 8)) == 8
    assert (run / "dense_front.png").is_file()


def test_blends_go_where_the_gap_is_widest():
    front = SimpleNamespace(z=np.array([[0.0, 1.0], [0.1, 0.9], [1.0, 0.0]]))
    assert spread_points(front, 0, 3) == {}
    assert spread_points(front, 1, 3) == {(1, 2): 1}
    assert spread_points(front, 3, 3) == {(1, 2): 3}
    assert spread_points(front, 99, 3) == {(0, 1): 3, (1, 2): 3}


def test_a_measured_blend_draws_the_pictures_its_numbers_come_from(analysed):
    """Its returns come back from its adapter in a plain diffusers pipeline."""
    blend = Front.load(analysed).blends[0]
    pipe = make_tiny_pipe()
    blend.apply(pipe)
    assert report_colorfulness(pipe, pictures=16) == pytest.approx(
        blend.report_returns[0], rel=1e-5
    )


def test_blends_are_not_measured_on_other_prompts_than_the_policies(run_copy, capsys):
    config = json.loads((run_copy / "config.json").read_text())
    prompts = Path(config["settings"]["prompts"]["report"])
    edited = run_copy / "edited.txt"
    edited.write_text(prompts.read_text().replace("e", "another"))
    config["settings"]["prompts"]["report"] = str(edited)
    (run_copy / "config.json").write_text(json.dumps(config))
    assert mo_front.main(["analyse", str(run_copy), "--points", "1"]) == 1
    assert "the report set has changed since the run" in capsys.readouterr().err


def test_blends_are_not_published_beside_policies_measured_differently(run_copy, capsys):
    front = json.loads((run_copy / "front.json").read_text())
    policy = front["policies"][0]
    policy["report_returns"][0] += 2 * policy["report_std_error"][0]
    (run_copy / "front.json").write_text(json.dumps(front))
    assert mo_front.main(["analyse", str(run_copy), "--points", "1"]) == 1
    assert "the reward or the base model have changed since" in capsys.readouterr().err
    assert json.loads((run_copy / "front.json").read_text()) == front


def test_useful_blends_are_added_to_the_front_and_raise_its_hypervolume(analysed, finished_run):
    front = Front.load(analysed)
    before = Front.load(finished_run)
    assert front.blends
    assert before.blends == ()
    assert [policy.id for policy in front.policies] == [policy.id for policy in before.policies]
    returns = np.array([member.report_returns for member in front.members])
    for blend in front.blends:
        others = returns[[member.id != blend.id for member in front.members]]
        is_beaten = (others >= blend.report_returns).all(axis=1)
        assert not (is_beaten & (others > blend.report_returns).any(axis=1)).any()
        assert sum(share for _, share in blend.parts) == pytest.approx(1)
        assert blend.weights.sum() == pytest.approx(1)
    assert front.dense_hypervolume == pytest.approx(
        hypervolume(to_z(returns, front.objectives)), rel=1e-12
    )
    assert front.dense_hypervolume > front.hypervolume
    stored = json.loads((analysed / "front.json").read_text())["hypervolume"]
    assert stored["report_with_blends"] == pytest.approx(front.dense_hypervolume)
    record = FrontRecord.read(analysed)
    for blend in record.blends:
        gain = blend.report_returns - record.base.report_returns
        np.testing.assert_allclose(blend.gain_over_base, gain, atol=1e-3 * np.abs(gain).max())
        assert (blend.gain_std_error > 0).all()
        assert (blend.gain_std_error_by_prompt > 0).all()
    assert (analysed / "dense_front.png").read_bytes().startswith(b"\x89PNG")


def test_guards_are_measured_on_blends_beside_the_base_model(analysed):
    blends = Front.load(analysed).blends
    readings = [blend.guards["brightness"] for blend in blends]
    assert len({reading.value for reading in readings}) == len(blends)
    assert all(0 < reading.value < 1 and reading.std_error > 0 for reading in readings)
    base = readings[0].value + readings[0].drop
    assert [reading.value + reading.drop for reading in readings] == pytest.approx(
        [base] * len(blends), rel=1e-5
    )


def test_the_analysis_file_has_every_blend_with_its_height(analysed):
    front, data = Front.load(analysed), json.loads((analysed / "analysis.json").read_text())
    blends = [blend for link in data["links"] for blend in link["blends"]]
    assert len(blends) == 2 * (len(front.policies) - 1)
    assert {b["id"] for b in blends if b["is_useful"]} == {blend.id for blend in front.blends}
    members = [name for family in data["families"] for name in family]
    assert sorted(members) == sorted(policy.id for policy in front.policies)
    z = dict(zip((policy.id for policy in front.policies), front.z, strict=True))
    places = np.linspace(0, 1, 1001)[:, None]
    for link in data["links"]:
        assert link["holds"] == all(blend["holds"] for blend in link["blends"])
        chord = z[link["first"]] + places * (z[link["second"]] - z[link["first"]])
        for blend in link["blends"]:
            excess = to_z(np.array(blend["report_returns"]), front.objectives) - chord
            assert blend["height"] == pytest.approx(excess.min(axis=1).max(), abs=1e-3)
            assert blend["height"] > -blend["depth"] - 5 * blend["height_std_error"]


def test_pictures_of_the_blends_are_stored_beside_the_policies(analysed):
    front = Front.load(analysed)
    blend = front.blends[0]
    pictures = read_samples(analysed, "report", blend.id, len(front.sample_prompts))
    pipe = make_tiny_pipe()
    blend.apply(pipe)
    images = draw_with_diffusers(pipe, front.sample_prompts, front.sample_seeds, guidance_scale=1.0)
    expected = images.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    # a rank of 8 in one pass rounds differently than two of rank 4: at most one level of 255
    difference = np.abs(np.stack(pictures).astype(int) - expected.astype(int))
    assert difference.max() <= 1


def test_analysing_again_replaces_the_blends(analysed, tmp_path, capsys):
    run = Path(shutil.copytree(analysed, tmp_path / "run"))
    assert mo_front.main(["analyse", str(run), "--points", "1", "--rows_per_pass", "8"]) == 0
    front = Front.load(run)
    assert all(share == 0.5 for blend in front.blends for _, share in blend.parts)
    pictures = {path.stem for path in (run / "samples" / "report").glob("b0*")}
    assert pictures == {blend.id for blend in front.blends}
    assert "family 1: " in capsys.readouterr().out


def test_a_measured_blend_is_shown_picked_by_name_and_exported(analysed, tmp_path, capsys):
    blend = Front.load(analysed).blends[0]
    assert mo_front.main(["show", str(analysed)]) == 0
    assert f"{blend.id} " in capsys.readouterr().out
    out = tmp_path / "blend"
    assert mo_front.main(["pick", str(analysed), "--policy", blend.id, "--out", str(out)]) == 0
    pipe, ours = make_tiny_pipe(), make_tiny_pipe()
    pipe.load_lora_weights(out)
    blend.apply(ours)
    images = [draw_with_diffusers(each, ["a"], [1]) for each in (pipe, ours)]
    assert torch.equal(*images)
    card = (out / "README.md").read_text()
    assert "an exact blend of" in card
    assert "## How good it is" in card


def test_fronts_that_cannot_be_analysed_are_refused(finished_run, run_copy, capsys):
    front = Front.load(finished_run)
    single = dataclasses.replace(front, policies=front.policies[:1])
    with pytest.raises(FrontError, match="a single policy"):
        analyse(single, 1)
    config = json.loads((run_copy / "config.json").read_text())
    config["settings"]["prompts"]["report"] = "/gone.txt"
    (run_copy / "config.json").write_text(json.dumps(config))
    assert mo_front.main(["analyse", str(run_copy)]) == 1
    message = capsys.readouterr().err
    assert "the report set cannot be drawn again" in message


@pytest.mark.parametrize("place", ["", "samples/report"])
def test_a_run_that_cannot_be_written_to_is_refused_before_a_picture_is_drawn(
    run_copy, capsys, monkeypatch, place
):
    original = Path.write_bytes

    def write(self, data):
        if self.parent == run_copy / place:
            raise OSError(30, "Read-only file system")
        return original(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    monkeypatch.setattr("front.analysis.measure.analyse", None)
    assert mo_front.main(["analyse", str(run_copy)]) == 1
    words = "cannot be written to: [Errno 30] Read-only file system; copy the run, and analyse"
    assert words in capsys.readouterr().err


def link(first, second, *heights, error=0.01, depth=0.5):
    """A link whose blends lie at the given heights."""
    blend = Blend(id="b", parts=((first, 0.5), (second, 0.5)), weights=first.weights)
    measured = (
        MeasuredBlend(
            blend=blend,
            height=h,
            height_std_error=error,
            depth=depth,
            is_useful=False,
            evaluation=None,
            gain=None,
        )
        for h in heights
    )
    return Link(first=first, second=second, blends=tuple(measured))


@pytest.mark.parametrize(
    ("height", "error", "holds"),
    [
        (0.1, 0.01, True),  # above the chord
        (-0.09, 0.01, True),  # below, by less than a fifth of the way to the corner at -0.5
        (-0.11, 0.01, False),
        (-0.11, 0.06, True),  # within two standard errors
        (-0.5, 0.01, False),
    ],
)
def test_interpolation_holds_near_the_chord_or_within_noise(finished_run, height, error, holds):
    a, b = Front.load(finished_run).policies[:2]
    assert link(a, b, 0.2, height, error=error).holds == holds


def test_families_are_what_holding_links_connect(finished_run):
    front = Front.load(finished_run)
    a, b, c = front.policies[:3]
    front = dataclasses.replace(front, policies=(a, b, c))

    def families(*links):
        analysis = Analysis(links=links, hypervolume=0, dense_hypervolume=0, num_images=0)
        return analysis.families(front)

    assert families(link(a, b, 0.1), link(b, c, 0.1)) == [[a.id, b.id, c.id]]
    assert families(link(a, b, 0.1), link(b, c, -0.4)) == [[a.id, b.id], [c.id]]
    assert families(link(b, c, 0.1), link(a, b, -0.4)) == [[a.id], [b.id, c.id]]
    assert families(link(a, b, -0.4), link(b, c, -0.4)) == [[a.id], [b.id], [c.id]]
    assert families(link(a, c, 0.1), link(a, b, -0.4)) == [[a.id, c.id], [b.id]]
