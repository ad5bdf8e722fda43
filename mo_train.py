"""Multi-objective RL fine-tuning of Stable Diffusion: PGMORL over DDPO, one LoRA per agent.

    accelerate launch mo_train.py --config config/base.py --config.train.learning_rate=1e-3
    python mo_train.py --config config/base.py --dry_run    # what it would do and need
    python mo_train.py --config config/base.py --calibrate  # what the base model scores

This file reads and checks the settings; the method itself is `mo_loop.py`, which is imported only
once they are right, so that a mistake is answered at once.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from absl import app, flags

from config.settings.errors import ConfigError, StoppedError, UserError
from config.settings.loader import load
from config.settings.parse import Choices, parse
from ddpo.normalisations import NORMALISATIONS
from ddpo.prompts import prompt_problems
from ddpo.rewards.lookup import diversity_problems, guard_problems, reward_problems
from ddpo.rules import UPDATE_RULES
from morl.selection import STRATEGIES
from run.choice import choose_run
from run.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.settings.schema import Settings

DEFAULT_RECIPE = Path(__file__).resolve().parent / "config" / "base.py"
EXIT_FAILED = 1
EXIT_WRONG_SETTINGS = 2
EXIT_STOPPED = os.EX_TEMPFAIL  # 75, by a signal: start it again with resume_from
CHOICES: Choices = {
    "train.update_rule": UPDATE_RULES,
    "advantage.normalisation": NORMALISATIONS,
    "evolution.strategy": STRATEGIES,
}
RULES = (reward_problems, guard_problems, prompt_problems, diversity_problems)


def read_settings(arguments: Sequence[str]) -> Settings:
    """Settings from the command line.

    Args:
        arguments: without the program's name.

    Raises:
        ConfigError: listing every problem.
    """
    config, problems = load(arguments, DEFAULT_RECIPE)
    try:
        settings = parse(config, CHOICES, RULES)
    except ConfigError as error:
        raise ConfigError(problems + error.problems) from error
    if problems:
        raise ConfigError(problems)
    return settings


def _read_settings_or_exit(argv: Sequence[str]) -> Settings:
    flags.FLAGS(argv[:1])  # absl's own flags keep their defaults; it insists on having parsed them
    if {"-h", "--help", "--helpfull"} & set(argv):
        sys.stdout.write(f"{__doc__}\nAll settings, with their defaults: {DEFAULT_RECIPE}\n")
        sys.exit(0)
    try:
        return read_settings(argv[1:])
    except ConfigError as error:
        _exit(error)


def _read_command_or_exit(argv: Sequence[str]) -> Callable[[], None]:
    """What the command line asks for: training, unless one of `_INSTEAD` is among its words."""
    asked = [word for word in argv if word in _INSTEAD]
    settings = _read_settings_or_exit([word for word in argv if word not in _INSTEAD])
    return partial(_INSTEAD[asked[0]] if asked else main, settings)


def dry_run(settings: Settings) -> None:
    """Print what the run would do and need, without training or downloading."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of torchvision
    from run.dry_run import dry_run as report  # noqa: PLC0415 - slow to import

    _print(report, settings)


def calibrate(settings: Settings) -> None:
    """Print what the base model scores, and recipe lines that follow, without training."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from run.calibrate import calibration_report  # noqa: PLC0415 - slow to import

    _print(calibration_report, settings)


def _print(report: Callable[[Settings], str], settings: Settings) -> None:
    if not _is_first():
        return
    try:
        sys.stdout.write(f"{report(settings)}\n")
    except UserError as error:
        _exit(error)


_INSTEAD = {"--dry_run": dry_run, "--calibrate": calibrate}


def main(settings: Settings) -> None:
    """Train, and publish the front."""
    try:
        choice = choose_run(settings)
        if choice.is_finished:
            if _is_first():
                sys.stdout.write(
                    f"{choice.path} is finished; raise evolution.evolutionary_generations to go "
                    "on\n"
                )
            return
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of torchvision
        from mo_loop import Run  # noqa: PLC0415 - slow to import, see the top of this file

        stop = Stop()
        with stop.watching():
            Run(settings, stop).train()
    except UserError as error:
        _exit(error)


def _is_first() -> bool:
    """Whether this is the first of several processes, which all come by here."""
    return os.environ.get("RANK", "0") == "0"


def _exit(error: UserError) -> NoReturn:
    """End with a message; the first process alone tells what is the same in all."""
    is_shared = isinstance(error, (ConfigError, StoppedError))
    if _is_first() or not is_shared:
        sys.stderr.write(f"{error}\n")
    codes = {ConfigError: EXIT_WRONG_SETTINGS, StoppedError: EXIT_STOPPED}
    sys.exit(codes.get(type(error), EXIT_FAILED))


if __name__ == "__main__":
    app.run(lambda command: command(), flags_parser=_read_command_or_exit)
