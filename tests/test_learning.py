"""It learns: on the embedded model, the reward of a single objective rises within seconds."""

from __future__ import annotations

import torch

from ddpo.advantages import within_prompt_std
from ddpo.evaluation import evaluation_set
from ddpo.processes import Processes
from ddpo.trainer import Trainer
from run.command_line import read_settings
from tests.support.paths import DDPO


def test_one_agent_with_all_weight_on_one_objective_raises_it():
    """Plain DDPO towards small files gains five paired standard errors on other pictures."""
    settings = read_settings(
        [
            f"--config={DDPO}",
            "--config.train.learning_rate=2e-2",
            "--config.sample.prompts_per_iteration=4",
            "--config.sample.images_per_prompt=4",
        ]
    )
    trainer = Trainer(settings, Processes.alone(), lambda *_: lambda: None)
    held_out = evaluation_set("selection", trainer.prompts.train[:16], 32, run_seed=1)
    initial = trainer.agents.initial_policy()
    base = trainer.evaluate([initial], held_out)[0]
    trainer.load([initial], torch.tensor([[0.0, 1.0]]))
    trainer.scales = within_prompt_std(base.rewards, held_out.prompts)
    for iteration in range(3):
        batch = trainer.draw(0, iteration)
        trainer.update(batch, trainer.advantages(batch))
    gain = trainer.evaluate([trainer.agents.snapshot(0)], held_out)[0].gain_over(base)
    trainer.close()
    assert gain.mean[1] > 5 * gain.std_error[1]
