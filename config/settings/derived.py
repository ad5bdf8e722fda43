"""Numbers and names that follow from settings; more are properties in `config/base.py`."""

from __future__ import annotations

import re


def objective_name(reward_name: str) -> str:
    """The name of an objective in metrics, labels and files; a plain name stays as it is.

    >>> objective_name("my_rewards.py:warmth"), objective_name("taste:people/ada/")
    ('warmth', 'ada')
    >>> objective_name("classifier:owner/vit#tabby cat")
    'vit_tabby_cat'
    """
    where, mark, part = reward_name.rpartition(":")[2].partition("#")
    return re.sub(r"[^\w.-]+", "_", where.rstrip("/").rpartition("/")[2] + mark + part)


def warmup_tasks(start: str, num_agents: int, num_objectives: int) -> int:
    """How many tasks the warm-up has with `evolution.start`: a soup's trains the extremes alone."""
    return num_objectives if start == "soup" else num_agents


def task_counts(start: str, num_agents: int, num_objectives: int) -> tuple[int, ...]:
    """How many tasks a generation has, in one stage or another, each number once.

    >>> task_counts("soup", num_agents=6, num_objectives=2)
    (2, 6)
    """
    return tuple(sorted({warmup_tasks(start, num_agents, num_objectives), num_agents}))


def patience(reward_seconds: float) -> float:
    """Seconds after which a process that keeps the others waiting counts as hung.

    A call of a reward may take `reward_seconds`, and files and pictures take minutes to write.
    """
    return max(600.0, reward_seconds)
