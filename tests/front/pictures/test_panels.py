"""Trackers are shown the front, sample pictures and a table, after every generation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from front.front import Front
from front.pictures.panels import front_panel, generation_panel


class FakeTracker:
    """Takes what accelerate's trackers take, and remembers it."""

    def __init__(self, name):
        self.name, self.images, self.tables, self.texts = name, [], [], []

    def log(self, values, step):
        self.texts.append((step, values))

    def log_images(self, values, step, **options):
        if self.name == "tensorboard":
            assert options == {"dataformats": "NHWC"}
        else:
            assert not options
        self.images.append((step, values))

    def log_table(self, table_name, columns, data, step):
        assert self.name == "wandb"
        self.tables.append((step, table_name, columns, data))


@pytest.fixture(scope="module", name="tracked")
def _tracked(make_run, monkeypatch_module):
    from accelerate import Accelerator

    trackers = [FakeTracker("wandb"), FakeTracker("tensorboard")]

    def start(self, project, settings, init_kwargs):
        kinds = {type(value) for value in settings.values()}
        assert kinds <= {int, float, str, bool}  # tensorboard refuses all else
        self.trackers = trackers

    monkeypatch_module.setattr(Accelerator, "init_trackers", start)
    monkeypatch_module.setattr(Accelerator, "log", lambda *_, **__: None)
    monkeypatch_module.setattr(Accelerator, "end_training", lambda *_: None)
    monkeypatch_module.setattr("run.trackers.importlib.util.find_spec", lambda _: object())
    return make_run("tracked", "trackers=wandb,tensorboard"), trackers


@pytest.fixture(scope="module", name="monkeypatch_module")
def _monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_every_generation_and_the_end_are_shown_at_their_step(tracked):
    run, (wandb, tensorboard) = tracked
    search = json.loads((run / "search.json").read_text())
    images = [images for images, _ in search["curve"][1:]]
    for tracker in (wandb, tensorboard):
        assert [step for step, _ in tracker.images] == [*images, images[-1]]
        for _, values in tracker.images[:-1]:
            assert set(values) == {"morl/front", "morl/samples"}
        assert set(tracker.images[-1][1]) == {"report/front", "report/samples"}
        for _, values in tracker.images:
            for batch in values.values():
                assert batch.dtype == np.uint8
                assert batch.ndim == 4
                assert batch.shape[-1] == 3
                assert batch.std() > 5  # something is drawn


def test_the_table_holds_the_front(tracked):
    run, (wandb, tensorboard) = tracked
    policies = [policy.id for policy in Front.load(run).policies]
    _, name, columns, data = wandb.tables[-1]
    assert name == "report/policies"
    assert columns[2:] == ["colorfulness [Hasler-Suesstrunk M]", "jpeg_compressibility [-kB]"]
    assert [row[0] for row in data] == policies
    _, text = tensorboard.texts[-1]
    assert all(policy in text["report/policies"] for policy in policies)


def test_the_archive_is_shown_during_the_run(finished_run):
    search = json.loads((finished_run / "search.json").read_text())
    panel = generation_panel(finished_run)
    assert {row[0] for row in panel.rows} == set(search["archives"][-1])
    made = search["generations"][-1]["offspring"]
    height = panel.images["morl/samples"].shape[0]
    assert height == 18 + 72 * (1 + len(made))


def test_a_run_without_pictures_is_shown_without(run_copy):
    for path in (run_copy / "samples").glob("*/*"):
        path.unlink()
    assert set(front_panel(run_copy).images) == {"report/front"}


def test_a_tracker_that_takes_no_images_is_left_out(make_run, monkeypatch, capsys):
    from accelerate import Accelerator

    class Refuses(FakeTracker):
        def log_images(self, *_, **__):
            raise ConnectionError("full")

    monkeypatch.setattr(
        Accelerator,
        "init_trackers",
        lambda self, *_, **__: setattr(self, "trackers", [Refuses("wandb")]),
    )
    monkeypatch.setattr(Accelerator, "log", lambda *_, **__: None)
    monkeypatch.setattr("run.trackers.importlib.util.find_spec", lambda _: object())
    settings = ("trackers=wandb", "evolution.evolutionary_generations=0")
    run = make_run("refused", *settings)
    assert (run / "front.json").exists()
    assert "a tracker could not be written to (full)" in capsys.readouterr().err
