"""Errors that the user can mend: their message is shown, without a traceback."""

from __future__ import annotations


class UserError(RuntimeError):
    """Something outside the program is wrong; the message says what and what to do."""


class StoppedError(UserError):
    """The run was asked to stop, and did so where nothing is half done."""


class ConfigError(UserError):
    """One or more settings are wrong.

    Args:
        problems: a sentence for each: the setting, its value, the rule, what to do.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        count = (
            "1 setting is wrong" if len(problems) == 1 else f"{len(problems)} settings are wrong"
        )
        super().__init__(f"{count}:\n" + "\n".join(f"  - {problem}" for problem in problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        """What a process pool sends home: an exception's own way would call it with its message."""
        return type(self), (self.problems,)
