"""Wrong settings are met before anything heavy is imported, all of them in one message."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest

from config import base
from config.settings.errors import ConfigError
from config.settings.parse import parse
from config.settings.resume import changed_settings
from run.command_line import read_settings
from tests.support.paths import ROOT

WRONG = {
    "--config.foo=1": "foo is not a setting",
    "--config.train.learnin_rate=1": "did you mean train.learning_rate?",
    "--config.trian.learning_rate=1": "did you mean train?",
    "--config.train=3": "is a section",
    "--config.train.learning_rate=abc": "must be a number",
    "--config.train.learning_rate=nan": "train.learning_rate=nan must be a finite number",
    "--config.train.learning_rate=inf": "must be a finite number",
    "--config.train.learning_rate=0": "train.learning_rate=0.0 must be above 0",
    "--config.train.adam_beta2=1": "train.adam_beta2=1.0 must be below 1",
    "--config.train.weight_decay=-1": "must be at least 0",
    "--config.train.kl_coef=-1": "train.kl_coef=-1.0 must be at least 0",
    "--config.train.best_of=0": "train.best_of=0.0 must be above 0",
    "--config.train.best_of=0.2": "keeps 10 of an agent's 48 images, which must be a multiple",
    "--config.train.timestep_fraction=1.5": "must be at most 1",
    "--config.train.timestep_fraction=0": "must be above 0",
    "--config.train.updates_per_epoch=5": "must divide the 48 images",
    "--config.train.updates_per_epoch=0": "must be at least 1",
    "--config.train.update_rule=grpo": "train.update_rule: 'grpo' is not one of awm, ddpo",
    "--config.train.nft_strength=0": "must be above 0",
    "--config.train.recompute_log_probs=maybe": "is not one of always, auto, never",
    "--config.train.skip_last_steps=6": "must be below sample.num_steps=6",
    "--config.train.step_weighting=snr": "train.step_weighting: 'snr' is not one of equal",
    "--config.train.rows_per_pass=2": "train.rows_per_pass=2 must be at least 4",
    "--config.train.single_pass=True": "train.updates_per_epoch=4 does not go with",
    "--config.train.gradient_checkpointing=perhaps": "must be True or False",
    "--config.train.max_grad_norm=-1": "must be above 0",
    "--config.processes.count=-1": "must be at least 0",
    "--config.processes.timeout_seconds=0": "must be above 0",
    "--config.train.max_skipped_steps=-1": "must be at least 0",
    "--config.checkpoint.keep=1": "checkpoint.keep=1 must be at least 2",
    "--config.checkpoint.max_failures=0": "must be at least 1",
    "--config.resume_force=learning_rate": "did you mean train.learning_rate?",
    "--config.sample.num_steps=1.5": "must be a whole number",
    "--config.sample.num_steps=0": "must be at least 1",
    "--config.sample.eta=0": "sample.eta=0.0 must be above 0",
    "--config.sample.eta=2": "must be at most 1",
    "--config.sample.guidance_scale=0.5": "must be at least 1",
    "--config.sample.noisy_steps=-1": "sample.noisy_steps=-1 must be at least 0",
    "--config.sample.noisy_steps=5": "sample.noisy_steps=5 must be at most the 4 steps",
    "--config.sample.negative_prompt=ugly": "has no effect at sample.guidance_scale=1",
    "--config.sample.rows_per_pass=2": "one sample of each agent",
    "--config.sample.images_per_prompt=-4": "must be at least 1",
    "--config.agents.kind=solo": "agents.kind: 'solo' is not one of conditioned, population",
    "--config.agents.kind=conditioned": "set evolution.strategy=fixed_weights",
    "--config.adapter.rank=0": "must be at least 1",
    "--config.adapter.alpha=0": "must be above 0",
    "--config.rewards.names=jpeg_compressibility": "must name at least 2 objectives",
    "--config.rewards.names=clip_alignment,clip_alignment": "must not repeat an objective",
    "--config.rewards.names=clip_alignment,jpg_compressibility": (
        "did you mean 'jpeg_compressibility'?"
    ),
    "--config.rewards.reference=1,2": "must be given together",
    "--config.rewards.reference=1,2,3": "must have one number for each",
    "--config.rewards.scales=1": "rewards.scales=(1.0,) must have one number for each",
    "--config.rewards.scales=1,0": "rewards.scales=(1.0, 0.0) must be above 0",
    "--config.rewards.reference=a,b": "must be a tuple of numbers",
    "--config.rewards.names=colorfulness,nowhere:f": "a module that is not on the Python path",
    "--config.rewards.remotes=judge": "must look like name=http://host:port/path",
    "--config.rewards.remote_encoding=gif": "is not one of jpeg, png",
    "--config.rewards.remote_attempt_seconds=0": "must be above 0",
    "--config.rewards.remote_retries=-1": "must be at least 0",
    "--config.rewards.dtype=float8": "rewards.dtype: 'float8' is not one of",
    "--config.rewards.batch_size=0": "must be at least 1",
    "--config.rewards.timeout_seconds=0": "must be above 0",
    "--config.rewards.on_error=ignore": "is not one of abort, skip",
    "--config.rewards.max_invalid_fraction=1.5": "must be at most 1",
    "--config.rewards.device=abacus": "rewards.device='abacus' is not a device",
    "--config.prompts.train=nowhere": "prompts.train: prompt set 'nowhere' is neither a file",
    "--config.prompts.train=": "prompts.train: prompt set '' is neither a file",
    "--config.prompts.selection=nowhere": "prompts.selection: prompt set 'nowhere' is neither",
    "--config.guards.names=divercity": "Guards may also be base_similarity or diversity",
    "--config.guards.names=clip_alignment": "'clip_alignment' is an objective",
    "--config.guards.names=diversity,diversity": "must not repeat a guard",
    "--config.guards.max_losses=0.1": "must have one number for each of ()",
    "--config.guards.max_losses=-0.1": "must not be negative",
    "--config.advantage.normalisation=none": "is not one of frozen, per_prompt, raw",
    "--config.advantage.min_count=50": "must be at most advantage.buffer_size=16",
    "--config.evaluation.num_steps=-1": "evaluation.num_steps=-1 must be at least 0",
    "--config.evaluation.calibration_prompts=1": "must be at least 2",
    "--config.evaluation.report_images=1": "must be at least 2",
    "--config.evolution.num_agents=1": "must be at least the 2 objectives",
    "--config.evolution.num_agents=0": "must be at least 1",
    "--config.evolution.num_agents=130": "sample.rows_per_pass=128 must be at least 130",
    "--config.evolution.strategy=best": "evolution.strategy: 'best' is not one of",
    "--config.evolution.start=cold": "evolution.start: 'cold' is not one of even_weights, soup",
    "--config.evolution.sparsity_coef=-0.1": "must be at least 0",
    "--config.evolution.num_directions=1": "must be at least 2",
    "--config.trackers=mlflow": "trackers: 'mlflow' is not one of tensorboard, wandb",
    "--config.pretrained.dtype=float8": "is not one of",
    "--config.pretrained.height=-64": "pretrained.height=-64 must be at least 0",
    "--config.pretrained.width=a": "must be a whole number",
    "--config.pretrained.original_size=512": "must be two whole numbers of pixels",
    "--config.pretrained.original_size=512,0": "each at least 1, or be empty",
    "--config.pretrained.crop_top_left=0,0.5": "must be a tuple of numbers",
    "--config.pretrained.crop_top_left=0,-1": "vertical first, each at least 0",
    "--config.pretrained.single_file_config=x/y": "is not a .safetensors file",
    "--config.pretrained.lora_file=a.safetensors": "has no effect without pretrained.lora",
    "--config.pretrained.lora_revision=main": "has no effect without pretrained.lora",
    "--config.pretrained.lora_scale=nan": "must be a finite number",
    "--config.pretrained.vae_slicing=perhaps": "must be True or False",
    "--config.pretrained.vae_tiling=perhaps": "must be True or False",
    "--config.pretrained.offload_text_encoders=perhaps": "must be True or False",
    "--config.run_name=../x": "must be a plain folder name",
    f"--config.run_name={150 * 'ä'}": "of at most 200 bytes",
    f"--config.prompts.train={'a cat, ' * 99}": "is neither a file nor one of",
    f"--config.rewards.names={300 * 'a'}.py:f,colorfulness": "names a file that does not exist",
    f"--config={300 * 'a'}.py": "is not a file",
    "--config.guards.names=colorfulness:f,a:f": "must not repeat a guard",
    "--config.seed=-1": "must be at least 0",
    "--config.seed": "needs a value",
    "--seed=1": "is not understood",
    "--config=nowhere.py": "is not a file",
}


@pytest.mark.parametrize("argument", WRONG)
def test_a_wrong_setting_is_named(argument):
    with pytest.raises(ConfigError) as error:
        read_settings([argument])
    assert WRONG[argument] in str(error.value)


def test_all_problems_come_in_one_message():
    arguments = ["--config.seed=-1", "--config.foo=1", "--config.sample.eta=0", "--config.train=1"]
    with pytest.raises(ConfigError, match="4 settings are wrong") as error:
        read_settings(arguments)
    assert len(error.value.problems) == 4
    sent_home = pickle.loads(pickle.dumps(error.value))  # as a process pool does
    assert (str(sent_home), sent_home.problems) == (str(error.value), error.value.problems)


def test_the_program_answers_with_exit_code_2_and_no_traceback_before_torch_is_imported():
    code = (
        "import sys, runpy; sys.argv = ['mo_train.py', '--config.seed=-1', '--config.foo=1']\n"
        "try: runpy.run_path('mo_train.py', run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert "2 settings are wrong" in run.stderr


def test_every_mistake_of_the_table_is_met_without_importing_torch():
    """One process that imports nothing else: the table above in a second, start included."""
    code = (
        "import json, sys\n"
        "from config.settings.errors import ConfigError\n"
        "from run.command_line import read_settings\n"
        "messages = []\n"
        "for argument in json.load(sys.stdin):\n"
        "    try: read_settings([argument])\n"
        "    except ConfigError as error: messages.append(str(error))\n"
        "assert not {'torch', 'diffusers', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "json.dump(messages, sys.stdout)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(list(WRONG)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    messages = json.loads(run.stdout)
    assert len(messages) == len(WRONG) > 40
    for message, expected in zip(messages, WRONG.values(), strict=True):
        assert expected in message


@pytest.mark.parametrize(
    "recipe",
    [path for path in sorted((ROOT / "config").glob("*.py")) if "def get_" in path.read_text()],
    ids=lambda path: path.stem,
)
def test_every_recipe_is_valid(recipe):
    settings = read_settings([f"--config={recipe}"])
    assert settings.evolution.num_generations > 0


def test_what_a_gradient_taken_while_sampling_cannot_be_is_named():
    train = {
        "single_pass": True,
        "update_rule": "awm",
        "num_inner_epochs": 2,
        "kl_coef": 0.1,
        "best_of": 0.5,
        "timestep_fraction": 0.5,
        "recompute_log_probs": "always",
    }
    with pytest.raises(ConfigError) as error:
        read_settings([f"--config.train.{name}={value}" for name, value in train.items()])
    problems = "\n".join(error.value.problems)
    for name in (*list(train)[1:], "updates_per_epoch"):
        assert f"train.{name}=" in problems
    assert len(error.value.problems) == 7
    fine = ["--config.train.single_pass=True", "--config.train.updates_per_epoch=1"]
    assert read_settings(fine).training_sample.rows_per_pass == 128


def test_overrides_reach_the_settings():
    settings = read_settings(
        [
            "--config.train.learning_rate=1e-3",
            "--config.rewards.names",
            "colorfulness,jpeg_compressibility",
            "--config.rewards.reference=(1, -2.5)",
            "--config.rewards.ideal=2,-1",
            "--config.pretrained.channels_last=true",
            "--config.pretrained.original_size=1024,768",
            "--config.seed=7",
        ]
    )
    assert settings.train.learning_rate == 1e-3
    assert settings.rewards.names == ("colorfulness", "jpeg_compressibility")
    assert settings.rewards.reference == (1.0, -2.5)
    assert settings.pretrained.channels_last is True
    assert settings.pretrained.original_size == (1024, 768)
    assert settings.seed == settings.evolution.seed == 7


@pytest.mark.parametrize("is_fused", [True, False])
def test_a_run_of_the_time_of_pretrained_fuse_keeps_its_speed(is_fused, tmp_path):
    record = {"settings": read_settings([]).to_json()}
    del record["settings"]["speed"]
    record["settings"]["pretrained"]["fuse"] = is_fused
    (tmp_path / "config.json").write_text(json.dumps(record))
    settings = read_settings([f"--config.resume_from={tmp_path}"])
    assert settings.speed == ("fused" if is_fused else "layers")
    changed_settings(record["settings"], settings)


def test_a_run_to_continue_brings_its_settings_unless_a_recipe_is_given(tmp_path, monkeypatch):
    began = ["--config.adapter.rank=8", "--config.adapter.target_modules=to_q,to_v"]
    began += ["--config.resume_force=train.kl_coef", "--config.train.learning_rate=1"]
    record = {"settings": read_settings(began).to_json()}
    del record["settings"]["train"]["skip_last_steps"]  # which its program did not have yet
    (tmp_path / "config.json").write_text(json.dumps(record))
    resume = f"--config.resume_from={tmp_path}"
    settings = read_settings([resume, "--config.train.learning_rate=2"])
    assert settings.adapter.rank == 8
    assert settings.adapter.target_modules == ("to_q", "to_v")
    assert settings.resume_force == ()
    assert settings.train.skip_last_steps == 0
    assert settings.train.learning_rate == 2
    changed_settings(record["settings"], read_settings([resume]))
    assert read_settings([resume, f"--config={base.__file__}"]).adapter.rank == 4
    monkeypatch.chdir(tmp_path)
    assert read_settings(["--config.resume_from="]).adapter.rank == 4
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is damaged"):
        read_settings([resume])


def test_a_missing_key_is_named():
    config = base.get_config()
    with config.unlocked():
        del config.train["learning_rate"]
    with pytest.raises(ConfigError, match=r"train\.learning_rate is missing"):
        parse(config, {})


def test_harmless_changes_are_accepted_and_told():
    before = read_settings([]).to_json()
    changes = changed_settings(
        before,
        read_settings(
            [
                "--config.evolution.evolutionary_generations=50",
                "--config.trackers=wandb",
                "--config.resume_from=x",
                "--config.train.rows_per_pass=64",
            ]
        ),
    )
    assert changes == [
        "evolution.evolutionary_generations was 8 and is 50 now",
        "trackers was [] and is ['wandb'] now",
        "train.rows_per_pass was 128 and is 64 now; results stay the same up to rounding",
    ]


@pytest.mark.parametrize(
    "argument",
    [
        "--config.seed=1",
        "--config.evolution.evolutionary_generations=1",
        "--config.evaluation.num_steps=5",
        "--config.sample.noisy_steps=2",
        "--config.train.best_of=0.5",
        "--config.train.step_weighting=sensitivity",
    ],
)
def test_other_changes_are_refused_unless_they_are_forced_by_name(argument):
    name = argument.removeprefix("--config.").split("=")[0]
    before = read_settings([]).to_json()
    with pytest.raises(ConfigError, match=f"--config.resume_force={name}"):
        changed_settings(before, read_settings([argument]))
    forced = read_settings([argument, f"--config.resume_force={name}"])
    assert any(
        change.startswith(name) and change.endswith("forced by resume_force")
        for change in changed_settings(before, forced)
    )


def test_what_policies_are_made_of_cannot_be_forced():
    arguments = ["--config.adapter.rank=8", "--config.resume_force=adapter.rank"]
    with pytest.raises(ConfigError, match=r"adapter\.rank was 4 and is 8 now; .* start a new run"):
        changed_settings(read_settings([]).to_json(), read_settings(arguments))


def test_a_setting_that_is_newer_than_the_run_takes_its_default():
    before = read_settings([]).to_json()
    del before["checkpoint"], before["train"]["clip_nats"]
    before["train"]["forgotten"] = 1
    changed_settings(before, read_settings([]))
    with pytest.raises(ConfigError, match=r"train\.clip_nats was not there and is 2\.0 now"):
        changed_settings(before, read_settings(["--config.train.clip_nats=2"]))


def test_a_run_older_than_a_setting_goes_on_as_it_did_whatever_is_the_default_now():
    before = read_settings([]).to_json()
    del before["evolution"]["start"], before["evaluation"]["num_steps"]
    with pytest.raises(ConfigError, match="2 settings are wrong") as error:
        changed_settings(before, read_settings([]))
    assert "evolution.start was not there and is 'soup' now" in str(error.value)
    as_then = ["--config.evolution.start=even_weights", "--config.evaluation.num_steps=0"]
    assert len(changed_settings(before, read_settings(as_then))) == 2
