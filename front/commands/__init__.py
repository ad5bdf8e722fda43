"""The commands of `mo_front.py`: a file of this folder each, and a line here.

What is slow to import (torch, diffusers, matplotlib) is imported by the command that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from front.commands.command import Command

_NAMES = (  # in the order of the help
    "show",
    "pick",
    "blend",
    "analyse",
    "transfer",
    "export",
    "slider",
    "generate",
    "report",
    "serve",
    "taste",
    "push",
    "compare",
)
COMMANDS: dict[str, Command] = {
    name: import_module(f"front.commands.{name}").COMMAND for name in _NAMES
}
