"""The basis of the study's tables: records, costs to reach a value, paired tests, real runs."""

from __future__ import annotations

import doctest
import json
import math

import pytest

from benchmarks import evidence
from benchmarks.emoji import tables
from benchmarks.emoji.__main__ import runnable, tuning_jobs
from benchmarks.emoji.arms import ARMS, BASELINE, PAIRS, words
from benchmarks.emoji.jobs import Job
from benchmarks.emoji.run import ReportCurve, measured
from benchmarks.evidence import Comparison, Point, Record
from morl.types import Objective
from run.command_line import read_settings
from run.session import Session
from tests.support.worlds import small_world

UNIT = tuple(
    Objective(name=name, unit="", reference=0.0, ideal=1.0)
    for name in ("clip_alignment", "jpeg_compressibility")
)


def record(*volumes, arm=BASELINE, seed=0):
    """A run that spends 100 images and 1000 rows per generation and reaches these hypervolumes."""
    return Record(
        pair="compress",
        arm=arm,
        seed=seed,
        learning_rate=1e-3,
        objectives=UNIT,
        returns={f"p{i}": [volume, 1.0] for i, volume in enumerate(volumes)},
        points=tuple(
            Point(images=100 * i, rows=1000 * i, seconds=float(i), archive=(f"p{i}",))
            for i in range(len(volumes))
        ),
    )


def test_the_examples_hold():
    result = doctest.testmod(evidence, extraglobs={"math": math})
    assert result.attempted == 6
    assert result.failed == 0


def test_a_record_returns_from_its_file(tmp_path):
    one = record(0.1, 0.2)
    one.write(tmp_path / "a" / "1.json")
    (again,) = evidence.read_records(tmp_path)
    assert (again.points, again.returns, again.seed) == (one.points, one.returns, one.seed)
    assert again.measures() == one.measures()


def test_another_reference_and_a_cap_change_what_a_hypervolume_is():
    """Points 0 and 1 are six spreads apart, the base model's mean between them."""
    one = record(0.4, 1.3)
    assert one.hypervolumes() == pytest.approx([0.4, 1.3])
    assert one.seen_from(3).hypervolumes() == pytest.approx([0.4, 1.3])
    assert one.seen_from(3, is_capped=True).hypervolumes() == pytest.approx([0.4, 1.0])
    low = 0.5 - 4 / 6
    expected = [(value - low) / (1 - low) for value in (0.4, 1.3)]
    assert one.seen_from(4).hypervolumes() == pytest.approx(expected)


def test_cost_to_reach_is_that_of_the_first_point_at_the_value_or_never():
    one = record(0.1, 0.3, 0.2, 0.4)
    assert one.cost_to_reach(0.25) == 100
    assert one.cost_to_reach(0.35, "rows") == 3000
    assert one.cost_to_reach(0.5) == evidence.NEVER


def test_the_area_is_the_hypervolume_averaged_over_the_images():
    assert record(0.1, 0.3, 0.9).area() == pytest.approx(0.2)


def test_a_comparison_pairs_seeds_and_counts_what_the_baseline_needed_itself():
    baseline = {0: record(0.1, 0.3, 0.4, 0.4), 1: record(0.1, 0.2, 0.3), 7: record(0.1)}
    arm = {0: record(0.1, 0.5), 1: record(0.1, 0.2, 0.2)}
    found = Comparison.of("x", arm, baseline)
    assert found.seeds == (0, 1)
    assert found.gains == pytest.approx([0.1, -0.1])
    assert found.image_ratios == (2.0, 0.0)  # 200 images over 100; never


def test_every_arm_is_settings_that_the_program_takes():
    for pair in PAIRS:
        for arm in runnable(list(ARMS), pair):
            read_settings(words(pair, arm, 0, 1e-3))


def test_an_arm_whose_settings_are_gone_names_the_commit_that_has_them():
    with pytest.raises(ValueError, match="best_of was measured at 7aaf014"):
        words("compress", "best_of", 0, 1e-3)


def test_an_arm_that_shares_a_sweep_names_one_that_has_it():
    assert all(ARMS[arm.tuned_as].tuned_as == "" for arm in ARMS.values() if arm.tuned_as)
    for pair in PAIRS:
        jobs = list(tuning_jobs(list(ARMS), [pair]))
        own = {name for name in runnable(list(ARMS), pair) if not ARMS[name].tuned_as}
        assert {job.arm for job in jobs} == own
        assert len({job.path for job in jobs}) == len(jobs)
    assert Job(pair="a", arm="b", seed=1, learning_rate=0.1).path.parts[-3:] == ("a", "b", "1.json")


def test_tables_plots_and_summary_are_made_from_records_alone(tmp_path, capsys):
    for seed in range(6):
        noise = seed / 1000
        for arm, volumes in ((BASELINE, (0.1, 0.2, 0.3)), (tables.RECOMMENDED, (0.1, 0.35, 0.4))):
            one = record(*(v + noise for v in volumes), arm=arm, seed=seed)
            one.write(tmp_path / "results" / "compress" / arm / f"{seed}.json")
            one.write(tmp_path / "tuning" / "compress" / arm / "0.001" / f"{seed}.json")
    tables.write_all(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["compress"][tables.RECOMMENDED] == {
        "seeds": 6,
        "hypervolume": pytest.approx(0.402),
        "images_ratio": 2.0,
        "rows_ratio": 2.0,
        "p": 2 / 2**6,
        "p_holm": 2 / 2**6,
    }
    assert (tmp_path / "compress_hypervolume.png").stat().st_size > 10_000
    assert (tmp_path / "compress_fronts.png").stat().st_size > 10_000
    assert "| faithful baseline" in capsys.readouterr().out


class Dead(BaseException):
    """No handler for `Exception` catches it."""


def die(*_):
    raise Dead


@pytest.fixture(scope="module", name="study")
def _study(tmp_path_factory):
    """Settings of a run of the study by its name, and the record of one that was never cut off."""
    world = small_world(tmp_path_factory.mktemp("world"))
    small = "--config.evaluation.report_images=8"

    def settings_for(name):
        auto = "--config.resume_from=auto"
        return read_settings([*world, small, auto, f"--config.run_name={name}"])

    return settings_for, measured(settings_for("whole"), "compress", BASELINE)


def test_a_measured_run_counts_images_and_names_what_it_measured(study):
    _, whole = study
    assert [point.images for point in whole.points] == sorted(p.images for p in whole.points)
    assert set().union(*(point.archive for point in whole.points)) == set(whole.returns)


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (ReportCurve, "opened"),  # the base model is saved and not noted
        # The first generation is trained and not saved; faults/test_kills.py tries the same.
        pytest.param(Session, "commit", marks=pytest.mark.slow),
        (ReportCurve, "generation"),  # it is saved and not noted
    ],
)
def test_a_measured_run_that_was_interrupted_leaves_the_same_record(
    study, monkeypatch, owner, method
):
    settings_for, whole = study
    settings = settings_for(f"cut-{owner.__name__}-{method}")
    monkeypatch.setattr(owner, method, die)
    with pytest.raises(Dead):
        measured(settings, "compress", BASELINE)
    monkeypatch.undo()
    again = measured(settings, "compress", BASELINE)
    assert again.returns == whole.returns
    assert [(p.images, p.rows, p.archive) for p in again.points] == [
        (p.images, p.rows, p.archive) for p in whole.points
    ]


def test_a_row_with_gradient_counts_three(tmp_path):
    """Two agents, one generation each, with 8 images per agent in 4 steps."""
    world = small_world(tmp_path)
    rows = {}
    for limit in ("0", "5"):
        changes = (
            f"train.max_sensitivity={limit}",
            f"run_name=limit{limit}",
            "evolution.evolutionary_generations=0",
        )
        words = [*world, *(f"--config.{change}" for change in changes)]
        points = measured(read_settings(words), "compress", BASELINE).points
        rows[limit] = points[1].rows - points[0].rows
    assert rows["0"] - rows["5"] == 3 * 2 * 8 * 2  # three times 2 agents, 8 images, 2 steps
