"""The typed settings and what follows from them, under the name that other modules import."""

from config.base import (
    AdapterSettings,
    AdvantageSettings,
    AgentSettings,
    EvaluationSettings,
    EvolutionSettings,
    GuardSettings,
    PretrainedSettings,
    ProcessSettings,
    PromptSettings,
    RewardSettings,
    SampleSettings,
    Settings,
    TrainSettings,
)
from config.settings.derived import objective_name, task_counts, warmup_tasks
from config.settings.flat import flatten

__all__ = [
    "AdapterSettings",
    "AdvantageSettings",
    "AgentSettings",
    "EvaluationSettings",
    "EvolutionSettings",
    "GuardSettings",
    "PretrainedSettings",
    "ProcessSettings",
    "PromptSettings",
    "RewardSettings",
    "SampleSettings",
    "Settings",
    "TrainSettings",
    "flatten",
    "objective_name",
    "task_counts",
    "warmup_tasks",
]
