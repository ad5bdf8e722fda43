"""It learns: on the embedded model, each single objective rises within seconds."""

from __future__ import annotations

import pytest
import torch

from ddpo.advantages import within_prompt_std
from ddpo.evaluation import EvaluationSet
from ddpo.trainer import Trainer
from mo_train import read_settings

OBJECTIVES = ("clip_alignment", "jpeg_compressibility")


@pytest.mark.parametrize("favourite", OBJECTIVES)
def test_one_agent_with_all_weight_on_one_objective_raises_it(favourite):
    """Plain DDPO: by five paired standard errors on pictures it was not trained on."""
    settings = read_settings(
        [
            f"--config.rewards.names={','.join(OBJECTIVES)}",
            "--config.train.learning_rate=3e-2",
            "--config.train.updates_per_epoch=8",
            "--config.sample.prompts_per_iteration=4",
            "--config.sample.images_per_prompt=8",
            "--config.evolution.iterations_per_generation=5",
        ]
    )
    trainer = Trainer(settings, torch.device("cpu"), lambda name, total: lambda: None)
    trainer.prompts = trainer.prompts[:8]
    held_out = EvaluationSet.make("selection", trainer.prompts, 64, run_seed=1)
    base = trainer.evaluate([trainer.agents.initial_policy()], held_out)[0]
    trainer.agents.load(0, trainer.agents.initial_policy())
    weights = torch.tensor([[float(name == favourite) for name in OBJECTIVES]])
    scales = within_prompt_std(base.rewards, held_out.prompts)
    for iteration in range(5):
        trainer.iterate(0, iteration, weights, scales)
    gain, error = trainer.evaluate([trainer.agents.snapshot(0)], held_out)[0].gain_over(base)
    trainer.close()
    index = OBJECTIVES.index(favourite)
    assert gain[index] > 5 * error[index]
