"""A finished run as a value: loading, choosing, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from ddpo.files import ADAPTER_FILE
from front import Front
from front.commands.arguments import numbers
from front.describe import front_text
from front.errors import ChoiceError, FrontError
from front.member import Blend, Guard
from morl.objectives import to_z
from tests.support.paths import ROOT


def edit(run, name, change):
    content = json.loads((run / name).read_text())
    change(content)
    (run / name).write_text(json.dumps(content))


def blend_of(policy):
    """A blend of one policy, as front.json lists it."""
    numbers = {"weights": [0.5, 0.5], "report_returns": [0, 1], "report_std_error": [1, 1]}
    return {"id": "b", "parts": [{"policy": policy, "coefficient": 1.0}], **numbers}


def test_importing_and_loading_needs_no_deep_learning_library(finished_run):
    code = (
        "import sys; from front import Front; "
        f"front = Front.load({str(finished_run)!r}); front.pick(weights=(0.3, 0.7)); "
        "front.blend((0.3, 0.7)); print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert out.stdout.strip() == b"set()"


def test_the_front_holds_what_front_json_says(finished_run):
    front, data = Front.load(finished_run), json.loads((finished_run / "front.json").read_text())
    assert {policy.id for policy in front.policies} == {entry["id"] for entry in data["policies"]}
    for entry in data["policies"]:
        policy = front.policy(entry["id"])
        for name in ("weights", "returns", "std_error", "report_returns", "report_std_error"):
            assert getattr(policy, name).tolist() == entry[name]
        assert (policy.parent, policy.generation) == (entry["parent"], entry["generation"])
        assert policy.file == finished_run / entry["adapter"] / ADAPTER_FILE
        assert policy.size_bytes == policy.file.stat().st_size
    firsts = [policy.report_returns[0] for policy in front.policies]
    assert firsts == sorted(firsts)
    assert front.base.report_returns.tolist() == data["base"]["report_returns"]
    assert front.hypervolume == pytest.approx(data["hypervolume"]["report"], rel=1e-12)
    assert front.names == ("colorfulness", "jpeg_compressibility")
    assert front.settings["sample"]["num_steps"] == 4
    assert len(front.history) == 9
    assert front.costs.to_json() == {**data["images"], "unet_rows": data["unet_rows"]}
    assert front.sample_prompts == 4 * ("e", "f")


@pytest.mark.parametrize("word", ["drop", "loss"])  # the second up to commit 7aaf014
def test_guards_are_read_and_shown(run_copy, word):
    def add(data):
        data["guards"] = [{"name": "diversity", "unit": "1 - cosine", f"max_{word}": 0.2}]
        for entry in (data["base"], *data["policies"]):
            entry["guards"] = {"diversity": {"value": 0.5, "std_error": 0.01, word: 0.1}}

    edit(run_copy, "front.json", add)
    front = Front.load(run_copy)
    assert front.guards == (Guard(name="diversity", unit="1 - cosine", max_drop=0.2),)
    assert front.policies[0].guards["diversity"].drop == 0.1
    text = front_text(front)
    assert "guard diversity [1 - cosine]" in text
    assert text.count("0.500 ± 0.010") == len(front.policies) + 1


def test_values_are_frozen(finished_run):
    front = Front.load(finished_run)
    with pytest.raises(dataclasses.FrozenInstanceError):
        front.policies = ()
    with pytest.raises(ValueError, match="read-only"):
        front.policies[0].report_returns[0] = 1.0


def test_pick_maximises_the_weighted_z_return(finished_run):
    front = Front.load(finished_run)
    z = {p.id: to_z(p.report_returns, front.objectives) for p in front.policies}
    for first in np.linspace(0, 1, 11):
        chosen = front.pick(weights=(first, 1 - first)).id
        utility = {name: first * value[0] + (1 - first) * value[1] for name, value in z.items()}
        assert utility[chosen] == pytest.approx(max(utility.values()))
    assert front.pick(weights=(1, 0)) is front.policies[-1]
    assert front.pick(weights=(0, 1)) is front.policies[0]


def test_pick_at_least_takes_the_best_other_objective_among_those_that_reach_it(finished_run):
    front = Front.load(finished_run)
    assert len(front.policies) >= 3
    middle = front.policies[len(front.policies) // 2]
    # of two objectives, more of one is less of the other: the bound itself is the best
    floor = {"colorfulness": middle.report_returns[0]}
    assert front.pick(at_least=floor) is middle
    assert front.pick(weights=(1, 0), at_least=floor) is front.policies[-1]
    lowest = {"colorfulness": -1e9}
    assert front.pick(at_least=lowest) is front.policies[0]


def test_measured_blends_are_picked_only_when_asked_for(finished_run):
    front = Front.load(finished_run)
    first, second = front.policies[:2]
    best = np.maximum(
        *(policy.report_returns for policy in (front.policies[0], front.policies[-1]))
    )
    blend = Blend(
        id="b000",
        parts=((first, 0.5), (second, 0.5)),
        weights=first.weights,
        report_returns=best,
        report_std_error=first.report_std_error,
    )
    dense = dataclasses.replace(front, blends=(blend,))
    assert dense.pick(weights=(0.5, 0.5)).id == front.pick(weights=(0.5, 0.5)).id
    assert dense.pick(weights=(0.5, 0.5), with_blends=True) is blend
    floor = {"colorfulness": best[0]}
    assert dense.pick(at_least=floor, with_blends=True) is blend
    assert dense.policy("b000") is blend
    assert dense.dense_hypervolume > dense.hypervolume == front.hypervolume


def test_a_blend_of_one_policy_has_its_returns_and_others_have_none(finished_run):
    front = Front.load(finished_run)
    alone = front.blend((1, 0))
    assert [(policy.id, share) for policy, share in alone.parts] == [(front.policies[-1].id, 1.0)]
    assert alone.report_returns is front.policies[-1].report_returns
    blends = [front.blend((w, 1 - w)) for w in np.linspace(0, 1, 41)]
    mixed = [blend for blend in blends if len(blend.parts) > 1]
    assert mixed
    assert all(blend.report_returns is None for blend in mixed)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), r"weights=1 must be 2 numbers, one for each of colorfulness, jpeg"),
        ((0.2, 0.3, 0.5), r"must be 2 numbers"),
        ((-0.5, 1.5), r"must be numbers of at least 0"),
        ((float("nan"), 1), r"must be numbers of at least 0"),
        ((1, 3), r"must sum to 1, not 4; the same preference is 0\.25,0\.75"),
        ((0, 0), r"must sum to 1, not 0$"),
    ],
)
def test_wrong_weights_are_refused_with_the_rule(finished_run, weights, message):
    front = Front.load(finished_run)
    for choose in (front.pick, front.blend):
        with pytest.raises(ChoiceError, match=message):
            choose(weights)


def test_weights_rounded_by_hand_are_accepted(finished_run):
    front = Front.load(finished_run)
    assert front.check_weights((0.3333335, 0.6666668)).sum() == 1.0


def test_the_weights_proposed_for_others_are_accepted(finished_run):
    front = Front.load(finished_run)
    for weights in ((1, 15), (1, 2), (1e-9, 3)):
        with pytest.raises(ChoiceError) as error:
            front.check_weights(weights)
        proposed = numbers(str(error.value).rpartition("the same preference is ")[2])
        assert front.check_weights(proposed) == pytest.approx(np.array(weights) / sum(weights))


def test_unreachable_bounds_and_unknown_names_are_reported(finished_run):
    front = Front.load(finished_run)
    with pytest.raises(FrontError, match=r"no policy reaches colorfulness >= 1e\+09; the best"):
        front.pick(at_least={"colorfulness": 1e9})
    with pytest.raises(ChoiceError, match=r"did you mean colorfulness\?"):
        front.pick(at_least={"colourfulness": 1})
    with pytest.raises(ChoiceError, match="give weights, or a least return"):
        front.pick()
    with pytest.raises(ChoiceError, match="no policy 'nobody' on the front; there are"):
        front.policy("nobody")


def test_a_missing_or_unfinished_run_is_named(run_copy):
    with pytest.raises(FrontError, match="is not a folder"):
        Front.load(run_copy / "nowhere")
    with pytest.raises(FrontError, match=r"is not a run directory: it has no config\.json"):
        Front.load(run_copy / "adapters")
    (run_copy / "front.json").unlink()
    with pytest.raises(FrontError, match=r"is not finished.*resume_from="):
        Front.load(run_copy)


@pytest.mark.parametrize("name", ["front.json", "config.json", "history.json"])
def test_a_damaged_file_is_named(run_copy, name):
    text = (run_copy / name).read_text()
    (run_copy / name).write_text(text[: len(text) // 2])
    with pytest.raises(FrontError, match=rf"{name} is damaged"):
        Front.load(run_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=9), "has format 9; this program reads 1"),
        (lambda d: d["policies"][0].pop("adapter"), "no entry 'adapter'"),
        (lambda d: d["policies"].clear(), "there is no policy"),
        (lambda d: d["policies"].append(d["policies"][0]), "two policies have the same id"),
        (lambda d: d["policies"][0].update(report_returns=[1.0]), "must have 2 entries"),
        (lambda d: d["policies"][0].update(adapter="../elsewhere"), "lies outside the run"),
        (lambda d: d["policies"][0].update(adapter="/etc"), "lies outside the run"),
        (lambda d: d["objectives"].pop(), "must have 1 entries"),
        (lambda d: d.update(policies=3), "is damaged"),
        (lambda d: d.update(blends=[blend_of("x")]), "no entry 'x'"),
        (lambda d: d.update(blends=[{"id": "b"}]), "no entry 'report_returns'"),
    ],
)
def test_wrong_content_is_refused_with_its_reason(run_copy, change, message):
    edit(run_copy, "front.json", change)
    with pytest.raises(FrontError, match=message):
        Front.load(run_copy)


def test_a_link_that_leads_out_of_the_run_is_refused(run_copy, tmp_path):
    (tmp_path / "outside").mkdir()
    policy = Front.load(run_copy).policies[0]
    (run_copy / "adapters" / "link").symlink_to(tmp_path / "outside")
    edit(run_copy, "front.json", lambda d: d["policies"][0].update(adapter="adapters/link"))
    with pytest.raises(FrontError, match="lies outside the run"):
        Front.load(run_copy)
    assert policy.adapter.exists()


def test_a_copy_without_the_search_still_loads_and_a_missing_adapter_is_named(run_copy):
    for name in ("history.json", "metrics.jsonl"):
        (run_copy / name).unlink()
    front = Front.load(run_copy)
    assert front.history == ()
    policy = front.policies[0]
    policy.file.unlink()
    with pytest.raises(FrontError, match=rf"the adapter of {policy.id} is missing"):
        policy.apply(None)
