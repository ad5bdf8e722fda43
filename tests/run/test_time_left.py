"""The time left of simulated runs against the time that they then take."""

from __future__ import annotations

import json
import math

import pytest

from ddpo.cost import stopwatch
from ddpo.cost.plan import Plan
from run.records import Costs
from run.time_left import Stand, TimeLeft, affordable_blends, shown
from tests.support.rig import make_settings
from tools import time_left

SECONDS = {"sampling": 0.2, "updating": 0.5, "evaluating": 0.3}  # a picture
SAVING, PUBLISHING = 2.0, 5.0  # a generation, the end


class Simulated:
    """A run on a clock of its own.

    Args:
        clock: the time, as a list of one number.
        num_agents: tasks of a generation.
        report_policies: that the plan expects.
        slowed: time of a generation over the time of the one before.
    """

    def __init__(self, clock, num_agents=4, report_policies=12, slowed=1.0):
        settings = make_settings(
            sample={"prompts_per_iteration": 8, "images_per_prompt": 1},
            evaluation={"selection_images": 64, "report_images": 128, "calibration_prompts": 16},
            evolution={
                "num_agents": num_agents,
                "warmup_generations": 1,
                "evolutionary_generations": 7,
                "iterations_per_generation": 4,
            },
        )
        self.clock, self.num_agents, self.slowed = clock, num_agents, slowed
        self.evolution = settings.evolution
        self.plan = Plan.of(
            settings, num_train_prompts=16, num_trained_steps=2, report_policies=report_policies
        )
        self.watch = stopwatch.Stopwatch()

    def work(self, kind, num_images, factor=1.0):
        with self.watch.part(kind, num_images):
            self.clock[0] += factor * SECONDS[kind] * num_images

    def play(self):
        """(generations done, time, time left) after every iteration; the last time is the end."""
        plan, said = self.plan, []
        self.work("evaluating", plan.calibration_images)
        self.work("evaluating", 64)
        costs = Costs(selection=plan.calibration_images + 64)
        left = TimeLeft(plan, 8, 0, costs, self.watch, blends_fraction=0.1)
        for generation in range(8):
            finalists = 1 + round(4 * math.sqrt(generation))
            for _ in range(4):
                factor = self.slowed**generation
                self.work("sampling", 8 * self.num_agents, factor)
                self.work("updating", 8 * self.num_agents, factor)
                stand = Stand(generations=generation, finalists=finalists)
                said.append((generation, self.clock[0], left.seconds(stand)))
            self.work("evaluating", 64 * self.num_agents)
            self.clock[0] += SAVING
        finalists = 1 + round(4 * math.sqrt(8))
        self.work("evaluating", 128 * finalists)
        self.work("evaluating", 128 * affordable_blends(plan, 0.1))
        self.clock[0] += PUBLISHING
        return said


@pytest.fixture(name="clock")
def _clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(("report_policies", "slowed"), [(12, 1.0), (40, 1.0), (3, 1.05)])
def test_after_the_second_generation_it_is_right_within_a_fifth(clock, report_policies, slowed):
    said = Simulated(clock, report_policies=report_policies, slowed=slowed).play()
    for generation, when, left in said:
        if generation >= 2:
            assert left == pytest.approx(clock[0] - when, rel=0.2)


def test_before_the_first_iteration_there_is_an_estimate_already(clock):
    run = Simulated(clock)
    stand = Stand(generations=0, finalists=1)
    assert TimeLeft(run.plan, 8, 0, Costs(), run.watch).seconds(stand) is None
    (_, when, left), *_ = run.play()
    assert left == pytest.approx(clock[0] - when, rel=0.4)


def test_a_part_that_is_half_done_takes_half_as_long(clock):
    run = Simulated(clock)
    left = TimeLeft(run.plan, 8, 0, Costs(), run.watch)
    run.work("evaluating", 100)
    with run.watch.part("evaluating", 1000):
        clock[0] += 0.3 * 500
        half = left.seconds(Stand(generations=0, finalists=1, fraction=0.5))
        clock[0] += 0.3 * 500
        end = left.seconds(Stand(generations=0, finalists=1, fraction=1.0))
    assert half - end == pytest.approx(0.3 * 500, rel=0.15)


def test_a_resumed_run_has_less_to_do(clock):
    run = Simulated(clock)
    run.work("evaluating", 64)
    whole = TimeLeft(run.plan, 8, 0, Costs(), run.watch)
    train, selection = run.plan.train_images, run.plan.selection_images
    rest = TimeLeft(run.plan, 8, 4, Costs(train=train // 2, selection=selection // 2), run.watch)
    stand = Stand(generations=4, finalists=9)
    assert rest.seconds(stand) < 0.8 * whole.seconds(stand)


def test_times_are_said_as_people_say_them():
    assert [shown(each) for each in (0.2, 61, 89, 90, 3599, 3700)] == [
        "10 s",
        "70 s",
        "90 s",
        "2 min",
        "1 h 0 min",
        "1 h 2 min",
    ]


def test_the_tool_compares_what_was_said_with_what_it_took(tmp_path):
    lines = [
        {"seconds": 90.0, "cost/seconds_left": 5.0},  # before the run was resumed
        {"seconds": 10.0, "cost/seconds_left": 60.0},
        {"seconds": 20.0, "morl/hypervolume": 0.1},
        {"seconds": 30.0, "cost/seconds_left": 30.0},
        {"seconds": 60.0, "cost/seconds_left": 0.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    said = time_left.read(tmp_path)
    assert said == [(10.0, 0, 60.0, 50.0), (30.0, 1, 30.0, 30.0)]
    assert [each.error for each in said] == pytest.approx([0.2, 0.0])
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines[:-1])))
    with pytest.raises(ValueError, match="is not finished"):
        time_left.read(tmp_path)
