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
        advice: what else to do about all of them.
    """

    def __init__(self, problems: list[str], advice: str = "") -> None:
        self.problems, self.advice = problems, advice
        count = (
            "1 setting is wrong" if len(problems) == 1 else f"{len(problems)} settings are wrong"
        )
        lines = [f"{count}:", *(f"  - {problem}" for problem in problems), *filter(None, [advice])]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str], str]]:
        """What a process pool sends home: an exception's own way would call it with its message."""
        return type(self), (self.problems, self.advice)
