"""Comparing runs under common points."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import mo_front
from front import Front
from front.compare import common_objectives, compare, differing_settings
from front.errors import ChoiceError


@pytest.fixture(scope="module", name="runs")
def _runs(finished_run, make_run):
    """Two runs whose reference and ideal points were measured alike, and one of other rewards."""
    other_seed = make_run("other", "train.learning_rate=0.1")
    three = "rewards.names=colorfulness,jpeg_incompressibility"
    strange = make_run("strange", three, "evolution.evolutionary_generations=0")
    return finished_run, other_seed, strange


def test_the_table_has_each_run_s_own_numbers_when_the_points_agree(runs, tmp_path, capsys):
    plot = tmp_path / "plot.png"
    assert mo_front.main(["compare", str(runs[0]), str(runs[1]), "--out", str(plot)]) == 0
    out = capsys.readouterr().out
    for run in runs[:2]:
        front = Front.load(run)
        line = next(line for line in out.splitlines() if line.startswith(run.name))
        cells = line.split()
        assert int(cells[1]) == len(front.policies)
        assert float(cells[3]) == pytest.approx(front.hypervolume, abs=1e-4)
        assert float(cells[5]) == pytest.approx(front.expected_utility, abs=1e-4)
        assert int(cells[-2]) == front.costs.train
    assert "differs  train.learning_rate: 0.3, 0.1" in out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_run_against_itself_is_on_the_joint_front_entirely(runs):
    front = Front.load(runs[0])
    both = compare([front, front], front.objectives)
    assert [each.num_joint for each in both] == [len(front.policies)] * 2
    assert differing_settings([front, front]) == []
    worse = dataclasses.replace(
        front,
        policies=tuple(
            dataclasses.replace(policy, report_returns=policy.report_returns - 1e3)
            for policy in front.policies
        ),
    )
    assert [c.num_joint for c in compare([front, worse], front.objectives)] == [
        len(front.policies),
        0,
    ]


def test_the_curve_rises_and_ends_at_what_the_search_found(runs):
    front = Front.load(runs[0])
    curve = compare([front], front.objectives)[0].curve
    assert curve.images.tolist() == [0, 24, 48, 72]
    assert (np.diff(curve.hypervolumes) >= 0).all()
    assert (np.diff(curve.unet_rows) > 0).all()
    metrics = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    archive = [line["morl/hypervolume"] for line in metrics if "morl/hypervolume" in line]
    # a little smaller: the archive leaves out policies within noise of one it has
    assert (curve.hypervolumes[1:] >= np.array(archive) - 1e-9).all()
    np.testing.assert_allclose(curve.hypervolumes[1:], archive, rtol=0.05)


def test_the_curve_counts_the_policies_that_a_soup_start_blended(make_run):
    run = make_run("soup", "evolution.start=soup", "evolution.evolutionary_generations=1")
    front = Front.load(run)
    curve = compare([front], front.objectives)[0].curve
    assert curve.images.tolist() == [0, 16, 16, 40]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    archive = [line["morl/hypervolume"] for line in metrics if "morl/hypervolume" in line]
    assert archive[1] > archive[0]  # the blends made a difference
    assert (curve.hypervolumes[1:] >= np.array(archive) - 1e-9).all()


def test_other_objectives_are_refused(runs, capsys):
    assert mo_front.main(["compare", str(runs[0]), str(runs[2])]) == 2
    message = capsys.readouterr().err
    assert "different objectives" in message
    assert "jpeg_incompressibility [kB]" in message


def moved(front, shift):
    """The same front with its reference point elsewhere."""
    first, *others = front.objectives
    first = dataclasses.replace(first, reference=first.reference - shift)
    return dataclasses.replace(front, objectives=(first, *others))


def test_other_points_are_refused_with_the_command_that_helps(runs):
    front = Front.load(runs[0])
    with pytest.raises(ChoiceError, match=r"different reference or ideal points.*--reference="):
        common_objectives([front, moved(front, 1.0)])


def test_given_points_replace_those_of_the_runs(runs, capsys):
    front = Front.load(runs[0])
    low = [objective.reference - 1 for objective in front.objectives]
    high = [objective.ideal + 1 for objective in front.objectives]
    objectives = common_objectives([front, moved(front, 1.0)], low, high)
    first, second = compare([front, moved(front, 1.0)], objectives)
    assert first.hypervolume == second.hypervolume
    for returns, z in zip(front.policies, first.z, strict=True):
        by_hand = (returns.report_returns - low) / (np.array(high) - low)
        np.testing.assert_allclose(z, by_hand, atol=1e-9)
    text = [",".join(map(str, point)) for point in (low, high)]
    arguments = [str(runs[0]), str(runs[1]), f"--reference={text[0]}", f"--ideal={text[1]}"]
    assert mo_front.main(["compare", *arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data[0]["hypervolume"] == pytest.approx(first.hypervolume)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (((0.0, 0.0), None), "go together"),
        (((0.0,), (1.0,)), "must be 2 numbers each"),
        (((0.0, 2.0), (1.0, 1.0)), "must be finite and below ideal"),
    ],
)
def test_wrong_points_are_refused(runs, points, message):
    front = Front.load(runs[0])
    with pytest.raises(ChoiceError, match=message):
        common_objectives([front, front], *points)


def test_one_run_is_no_comparison(runs, capsys):
    assert mo_front.main(["compare", str(runs[0])]) == 2
    assert "two or more" in capsys.readouterr().err


def test_runs_of_the_same_name_are_told_apart(runs, run_copy):
    front, copy = Front.load(runs[0]), Front.load(run_copy)
    same = dataclasses.replace(copy, path=run_copy.rename(run_copy.with_name(runs[0].name)))
    labels = [each.label for each in compare([front, same], front.objectives)]
    assert len(set(labels)) == 2
    for name in ("search.json", "history.json"):
        assert compare([Front.load(same.path)], front.objectives)[0].curve is not None
        (same.path / name).unlink()
    assert compare([Front.load(same.path)], front.objectives)[0].curve is None
