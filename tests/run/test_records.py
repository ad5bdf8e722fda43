"""Records of a run come back from JSON as the values that were written."""

from __future__ import annotations

import json

import pytest

from run.records import Costs, RecordError, RunConfig, SearchRecord, read_record
from run.state import RunState
from tests.support.checkpoints import state


def test_the_search_of_a_run_returns_byte_for_byte(finished_run):
    text = (finished_run / "search.json").read_text()
    record = SearchRecord.read(finished_run)
    assert json.dumps(record.to_json()) + "\n" == text
    assert [member.policy for member in record.archive] == json.loads(text)["archives"][-1]
    assert len(record.policies) == 1 + 3 * 3


def test_the_settings_of_a_run_return_byte_for_byte(finished_run):
    config = RunConfig.read(finished_run)
    text = (finished_run / "config.json").read_text()
    assert json.dumps(config.to_json(), indent=1) + "\n" == text
    assert config.settings["sample"]["num_steps"] == 4


def test_a_state_returns_from_json():
    again = RunState.from_json(json.loads(json.dumps(state(3).to_json())))
    assert again == state(3)


def test_entries_of_older_programs_are_dropped_or_empty():
    data = {**state(1).to_json(), "recompute_log_probs": True}
    del data["prompts"]
    again = RunState.from_json(data)
    assert again.prompts == {}
    assert "recompute_log_probs" not in again.to_json()


def test_a_state_without_its_calibration_is_none():
    data = state(1).to_json()
    del data["calibration"]
    with pytest.raises(KeyError, match="calibration"):
        RunState.from_json(data)


def test_costs_add_up():
    assert Costs(train=1, unet_rows=5) + Costs(train=2, report=3) == Costs(
        train=3, report=3, unet_rows=5
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"generations": 3}'])
def test_a_damaged_record_is_named(tmp_path, text):
    path = tmp_path / "search.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"search\.json is damaged: "):
        read_record(path, SearchRecord.from_json)
