"""Errors of questions to a front."""

from __future__ import annotations

from config.settings.errors import UserError


class FrontError(UserError):
    """No front, a damaged one, or nothing in it that answers the question."""


class ChoiceError(FrontError):
    """The question is wrong: weights or names that this front does not have."""
