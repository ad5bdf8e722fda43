"""front.json comes back as it was written, with every entry that it may hold."""

from __future__ import annotations

import json

import mo_front
from front.record import FrontRecord


def content(run):
    return (run / "front.json").read_text()


def test_a_front_returns_byte_for_byte(finished_run):
    record = FrontRecord.read(finished_run)
    assert json.dumps(record.to_json(), indent=1) + "\n" == content(finished_run)
    assert record.blends is None


def test_a_front_with_blends_returns_byte_for_byte(run_copy):
    assert mo_front.main(["analyse", str(run_copy), "--points", "1", "--device", "cpu"]) == 0
    record = FrontRecord.read(run_copy)
    assert record.blends
    assert json.dumps(record.to_json(), indent=1) + "\n" == content(run_copy)


def test_a_front_with_guards_returns_byte_for_byte(make_run):
    run = make_run(
        "guarded",
        "guards.names=diversity,jpeg_incompressibility",
        "guards.max_drops=0.5,1000",
        "evolution.evolutionary_generations=0",
    )
    record = FrontRecord.read(run)
    assert [guard.max_drop for guard in record.guards] == [0.5, 1000]
    assert record.base.guards["diversity"].drop == 0
    assert json.dumps(record.to_json(), indent=1) + "\n" == content(run)


def test_what_older_programs_did_not_write_is_empty(finished_run):
    data = json.loads(content(finished_run))
    del data["samples"]
    for policy in data["policies"]:
        for name in [*policy]:
            if "gain" in name or "by_prompt" in name:
                del policy[name]
    record = FrontRecord.from_json(data)
    assert len(record.samples) == 0
    assert record.policies[0].gain_std_error is None
    assert record.policies[0].report_std_error_by_prompt is None
