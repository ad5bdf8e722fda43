"""The command line of `mo_train.py`: settings, what to do with them, exit codes.

Nothing heavy is imported before the settings are right, so that a mistake is reported immediately.
"""

from __future__ import annotations

import gc
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from absl import app, flags

from config.settings.errors import ConfigError, StoppedError, UserError
from config.settings.loader import load
from config.settings.parse import Choices, parse
from config.settings.terminal import print_any_character
from ddpo.normalisations import NORMALISATIONS
from ddpo.prompts import prompt_problems
from ddpo.rewards.lookup import guard_problems, reward_problems
from ddpo.rules import UPDATE_RULES
from morl.selection import STRATEGIES
from run.choice import choose_run
from run.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from config.base import Settings

    Train = Callable[[Settings, Stop], None]

DEFAULT_RECIPE = Path(__file__).resolve().parents[1] / "config" / "base.py"
EXIT_FAILED = 1
EXIT_WRONG_SETTINGS = 2
EXIT_STOPPED = 75  # by a signal, start it again with resume_from: EX_TEMPFAIL of sysexits.h
CHOICES: Choices = {
    "train.update_rule": UPDATE_RULES,
    "advantage.normalisation": NORMALISATIONS,
    "evolution.strategy": STRATEGIES,
}
RULES = (reward_problems, guard_problems, prompt_problems)


def start(train: Train, usage: str) -> None:
    """Run the program: do what this process's command line asks for, and end with an exit code.

    Args:
        train: trains and publishes.
        usage: what `--help` prints first.
    """
    print_any_character()
    app.run(lambda command: command(), flags_parser=lambda argv: read_command(argv, train, usage))


def read_command(argv: Sequence[str], train: Train, usage: str = "") -> Callable[[], None]:
    """The function that a command line asks for: training, unless a word of it is in `_INSTEAD`.

    If the function fails, it ends the process. So does this one if the settings are wrong, or if
    the command line only asks for help.

    Args:
        argv: the program's name and its arguments.
        train: trains and publishes.
        usage: what `--help` prints first.
    """
    flags.FLAGS(argv[:1])  # absl's own flags keep their defaults; it insists on having parsed them
    if {"-h", "--help", "--helpfull"} & set(argv):
        sys.stdout.write(f"{usage}\nAll settings, with their defaults: {DEFAULT_RECIPE}\n")
        sys.exit(0)
    asked = [word for word in argv[1:] if word in _INSTEAD]
    try:
        settings = read_settings([word for word in argv[1:] if word not in _INSTEAD])
    except ConfigError as error:
        _exit(error)
    return partial(_INSTEAD[asked[0]], settings) if asked else partial(_train, train, settings)


def read_settings(arguments: Sequence[str]) -> Settings:
    """Settings from the command line.

    Args:
        arguments: without the program's name.

    Raises:
        ConfigError: listing every problem.
    """
    config, problems = load(arguments, DEFAULT_RECIPE, tuple(_INSTEAD))
    try:
        settings = parse(config, CHOICES, RULES)
    except ConfigError as error:
        raise ConfigError(problems + error.problems) from error
    if problems:
        raise ConfigError(problems)
    return settings


def _train(train: Train, settings: Settings) -> None:
    """Train and publish, unless the run is finished."""
    try:
        choice = choose_run(settings)
        if choice.is_finished:
            if _is_first():
                sys.stdout.write(
                    f"{choice.path} is finished; raise evolution.evolutionary_generations to "
                    "continue\n"
                )
            return
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of torchvision
        if _is_first():
            sys.stdout.write("loading libraries and model\n")
            sys.stdout.flush()
        stop = Stop()
        with stop.watching():
            train(settings, stop)
    except UserError as error:
        _exit(error)


def _dry_run(settings: Settings) -> None:
    """Print what the run would do and need, without training or downloading."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of torchvision
    gc.disable()  # objects of imports stay, and scanning them takes seconds
    from run.dry_run import dry_run  # noqa: PLC0415 - slow to import

    gc.freeze()
    gc.enable()
    _print(dry_run, settings)


def _calibrate(settings: Settings) -> None:
    """Print what the base model scores, and recipe lines that follow, without training."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from run.calibrate import calibration_report  # noqa: PLC0415 - slow to import

    _print(calibration_report, settings)


_INSTEAD = {"--dry_run": _dry_run, "--calibrate": _calibrate}


def _print(report: Callable[[Settings], str], settings: Settings) -> None:
    if not _is_first():
        return
    try:
        sys.stdout.write(f"{report(settings)}\n")
    except UserError as error:
        _exit(error)


def _is_first() -> bool:
    """Whether this is the first of several processes; all of them run this code."""
    return os.environ.get("RANK", "0") == "0"


def _exit(error: UserError) -> NoReturn:
    """End with a message; only the first process prints a message that is the same in all."""
    is_shared = isinstance(error, (ConfigError, StoppedError))
    if _is_first() or not is_shared:
        sys.stderr.write(f"{error}\n")
    codes = {ConfigError: EXIT_WRONG_SETTINGS, StoppedError: EXIT_STOPPED}
    sys.exit(codes.get(type(error), EXIT_FAILED))
