"""A front under other samplers, steps, guidance and strengths."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import mo_front
from ddpo.agents.adapter import Adapter, policy_of
from ddpo.agents.slots import Agents
from ddpo.model.stable_diffusion import FrozenDiffusion
from front import Front
from front.analysis.samplers import SetupSampler
from front.analysis.transfer import setup_of, usual_setups
from front.errors import ChoiceError, FrontError
from front.setups import SAMPLER_NAMES, Kept, Setup, SetupRecord, transferred
from morl.types import BASE_POLICY, Objective
from tests.support.adapters import random_adapter
from tests.support.pipelines import draw_with_diffusers, make_tiny_pipe
from tests.support.rig import make_settings

# Diffusers' schedulers of sigmas convert tensors as numpy 1 did.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning:diffusers.schedulers"
)
OWN = Setup(sampler="ddim", eta=1.0, steps=4, guidance=1.0)
OBJECTIVES = tuple(Objective(name=n, unit="u", reference=-1.0, ideal=3.0) for n in ("a", "b"))


def other(name, pipe):
    """The code that a user of diffusers would write."""
    kinds = {
        "ddim": diffusers.DDIMScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
        "euler_a": diffusers.EulerAncestralDiscreteScheduler,
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
        "dpmpp_2m_karras": diffusers.DPMSolverMultistepScheduler,
    }
    changes = {"use_karras_sigmas": True} if "karras" in name else {}
    return kinds[name].from_config(pipe.scheduler.config, **changes)


@pytest.fixture(scope="module", name="drawn")
def _drawn():
    """Two adapters and the base model on one tiny UNet; draws all of them under a setup."""
    settings = make_settings(adapter={"rank": 4, "alpha": 4.0}, sample={"rows_per_pass": 18})
    model = FrozenDiffusion(make_tiny_pipe())
    agents = Agents(model.unet, 3, settings.adapter, settings.train)
    adapters = [random_adapter(seed) for seed in (1, 2)]

    def draw(setup, texts, seeds):
        scaled = [Adapter.blend([(each, setup.strength)]) for each in adapters]
        for slot, policy in enumerate([policy_of(agents, a) for a in scaled]):
            agents.load(slot, policy)
        agents.load(2, agents.initial_policy())
        sampler = SetupSampler(model, settings.sample, setup)
        batch = sampler.prompt_batch(texts * 3, seeds * 3, 3)
        chunks = [chunk.images.unflatten(0, (3, -1)) for chunk in sampler.chunks(agents, batch)]
        return torch.cat(chunks, dim=1)

    return draw, adapters


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in {"euler", "dpmpp_2m_karras"} else [])
        for name in SAMPLER_NAMES
    ],
)
def test_pictures_are_those_of_diffusers_pipeline_under_every_scheduler(drawn, name):
    """Several policies per pass, in chunks, with guidance and at half strength."""
    draw, adapters = drawn
    eta = 0.3 if name == "ddim" else 0.0
    setup = Setup(sampler=name, eta=eta, steps=5, guidance=3.0, strength=0.5)
    texts, seeds = ["a", "b", "c", "d"], [5, 6, 7, 8]
    images = draw(setup, texts, seeds)
    for member, drawn_here in ((adapters[1], images[1]), (None, images[2])):
        pipe = make_tiny_pipe()
        if member is not None:
            member.apply(pipe, "policy")
            pipe.set_adapters("policy", 0.5)
        expected = draw_with_diffusers(
            pipe,
            texts,
            seeds,
            scheduler=other(name, pipe),
            num_inference_steps=5,
            guidance_scale=3.0,
            eta=eta,
        )
        torch.testing.assert_close(drawn_here, expected, atol=2e-4, rtol=0)
    assert (images[0] - images[2]).abs().max() > 0.01


def test_the_usual_setups_change_one_thing_each():
    setups = usual_setups(OWN, 7.5)
    assert [setup.words(OWN) for setup in setups] == [
        "as trained",
        "DDIM eta 0",
        "Euler a",
        "DPM++ 2M",
        "20 steps",
        "guidance 7.5",
        "strength 0.75",
        "strength 0.5",
    ]
    assert len(usual_setups(replace(OWN, guidance=5.0), 5.0)) == 8  # and guidance 1


@pytest.mark.parametrize(
    ("sampler", "own"), [("ddim", ("ddim", 1.0)), ("euler_a", ("euler_a", 0.0)), ("lcm", None)]
)
def test_the_own_setup_is_that_of_the_runs_sampler(run_copy, sampler, own):
    record = json.loads((run_copy / "front.json").read_text())
    record["model"]["sampler"] = sampler
    (run_copy / "front.json").write_text(json.dumps(record))
    if own is None:
        with pytest.raises(FrontError, match="was drawn with lcm, for which"):
            setup_of(Front.load(run_copy))
    else:
        setup = setup_of(Front.load(run_copy))
        assert (setup.sampler, setup.eta) == own


def test_a_setup_that_a_model_cannot_be_drawn_with_is_refused():
    pipe = make_tiny_pipe()
    pipe.scheduler = diffusers.DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="sample"
    )
    model, settings = FrozenDiffusion(pipe), make_settings()
    with pytest.raises(ChoiceError, match="Euler a, 4 steps, guidance 1, strength 1 cannot be"):
        SetupSampler(model, settings.sample, replace(OWN, sampler="euler_a", eta=0.0))


def planted(num=64):
    """Rewards of the base model and three policies, as trained and under another setup.

    `fluke` gains 1 in `a` as trained only. `solid` keeps its 0.5 of `a`, so that it overtakes
    `fluke`. `wide` keeps 1.5 in `b` of 2.
    """
    noise = np.random.default_rng(0).normal(size=(8, num, 2))
    base = noise[0]
    gains = {"fluke": (1.0, 0.0), "solid": (0.5, 0.0), "wide": (0.0, 2.0)}
    kept = {"fluke": (0.0, 0.0), "solid": (0.5, 0.0), "wide": (0.0, 1.5)}
    own = {n: base + g + 0.1 * noise[2 + i] for i, (n, g) in enumerate(gains.items())}
    base_now = base + 0.5  # the other sampler helps all alike
    now = {n: base_now + g + 0.1 * noise[5 + i] for i, (n, g) in enumerate(kept.items())}
    return {**own, BASE_POLICY: base}, {**now, BASE_POLICY: base_now}


def test_a_policy_that_wins_as_trained_only_is_flagged():
    own, now = planted()
    setup = replace(OWN, eta=0.0)
    record = transferred(setup, OBJECTIVES, own, now)
    assert record.lost(["a", "b"]) == [("fluke", "a")]
    assert [swap[:3] for swap in record.swaps] == [("a", "fluke", "solid")]
    share, error = record.policies["wide"].kept[1]
    assert share == pytest.approx(0.75, abs=3 * error)
    assert 0 < error < 0.02
    assert record.policies["wide"].kept[0] is None  # no gain to keep
    same = transferred(OWN, OBJECTIVES, own, own)
    assert same.lost(["a", "b"]) == []
    assert same.swaps == ()
    assert same.policies["fluke"].kept[0] == Kept(pytest.approx(1), pytest.approx(0, abs=1e-12))


def test_the_error_of_a_kept_share_is_that_of_many_draws():
    rng, shares, errors = np.random.default_rng(1), [], []
    for _ in range(200):
        before = 1 + rng.normal(size=(50, 1))
        after = 0.6 * before + 0.5 * rng.normal(size=(50, 1))
        rewards = ({"p": gain, BASE_POLICY: np.zeros((50, 1))} for gain in (before, after))
        kept = transferred(OWN, OBJECTIVES[:1], *rewards).policies["p"].kept[0]
        shares.append(kept.share)
        errors.append(kept.std_error)
    assert np.mean(shares) == pytest.approx(0.6, abs=0.02)
    assert np.mean(errors) == pytest.approx(np.std(shares), rel=0.15)


def test_pictures_without_a_score_are_left_out():
    own, now = planted()
    holes = {name: rewards.copy() for name, rewards in now.items()}
    holes["wide"][:4] = np.nan
    record = transferred(OWN, OBJECTIVES, own, holes)
    whole = {name: rewards[4:] for name, rewards in now.items()}
    expected = transferred(OWN, OBJECTIVES, {n: r[4:] for n, r in own.items()}, whole)
    assert record.policies["wide"].kept[1] == pytest.approx(expected.policies["wide"].kept[1])


def test_a_record_comes_back_from_json():
    record = transferred(replace(OWN, eta=0.0), OBJECTIVES, *planted())
    text = json.dumps(record.to_json())
    assert json.dumps(SetupRecord.from_json(json.loads(text), 2).to_json()) == text


@pytest.fixture(scope="module", name="measured")
def _measured(finished_run, tmp_path_factory):
    """A run after `transfer` with one other setup."""
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("transfer") / "run"))
    words = ["--setup", "sampler=euler_a,strength=0.5"]
    assert mo_front.main(["transfer", str(run), *words]) == 0
    return run


def test_the_command_adds_the_table_to_the_front_the_page_and_the_cards(measured, tmp_path):
    front = Front.load(measured)
    own, half = front.transfer
    assert (own.setup, half.setup) == (OWN, Setup(**{**HALF, "eta": 0.0}))
    for policy in front.policies:
        np.testing.assert_allclose(
            own.policies[policy.id].returns, policy.report_returns, rtol=1e-4
        )
    assert own.hypervolume == pytest.approx(front.hypervolume, rel=1e-3)
    page = (measured / "report.html").read_text()
    assert "Euler a, strength 0.5" in page
    out = tmp_path / "adapter"
    policy = front.policies[0].id
    assert mo_front.main(["export", str(measured), "--policy", policy, "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "## Drawn in other ways" in card
    assert "| Euler a, strength 0.5 |" in card


HALF = {"sampler": "euler_a", "steps": 4, "guidance": 1.0, "strength": 0.5}


def test_wrong_setups_are_refused_together_before_a_model_loads(finished_run, capsys):
    words = "sampler=heun,steps=0,guidance=0.5,strength=0"
    assert mo_front.main(["transfer", str(finished_run), "--setup", words]) == 2
    message = capsys.readouterr().err
    for part in ("sampler=heun is not one of", "steps=0", "guidance=0.5", "strength=0"):
        assert part in message
    words = "sampler=euler,eta=0.5"
    assert mo_front.main(["transfer", str(finished_run), "--setup", words]) == 2
    assert "eta=0.5 is for ddim only" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        mo_front.main(["transfer", str(finished_run), "--setup", "cfg=3"])
    assert "setup such as sampler=euler_a,steps=20" in capsys.readouterr().err
