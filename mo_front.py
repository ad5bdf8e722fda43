"""Use the front of a finished run: look at it, choose, blend, export, draw, share.

    python mo_front.py show logs/my_run
    python mo_front.py pick logs/my_run --weights 0.3,0.7 --out my_adapter

Each command has its own help, for example `python mo_front.py pick --help`. See also docs/front.md.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import re
import sys
from typing import TYPE_CHECKING

from config.settings.errors import UserError
from config.settings.terminal import print_any_character
from front.commands import COMMANDS
from front.errors import ChoiceError

if TYPE_CHECKING:
    from collections.abc import Sequence


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; a wrong argument ends the program with status 2."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="mo_front.py", description=__doc__, formatter_class=raw, allow_abbrev=False
    )
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = inspect.getdoc(command.run)
        sub = parsers.add_parser(
            name, help=command.summary, description=text, formatter_class=raw, allow_abbrev=False
        )
        command.add_arguments(sub)
        sub.set_defaults(command=command.run)
    return parser


def hyphenated(arguments: Sequence[str]) -> list[str]:
    """Replace underscores in option names by hyphens, so that both spellings work.

    Example:
        >>> hyphenated(["pick", "my_run", "--num_images=4"])
        ['pick', 'my_run', '--num-images=4']
    """
    out = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        is_option = argument.startswith("--")
        out.append(name.replace("_", "-") + equals + value if is_option else argument)
    return out


def suggestion(words: Sequence[str]) -> str:
    """The known command or option closest to a misspelt one; empty if none is close.

    Args:
        words: `hyphenated` arguments.

    Example:
        >>> suggestion(["shwo", "my_run"]), suggestion(["pick", "my_run", "--weigths=1,0"])
        ('show', '--weights')
    """
    name = words[0] if words else ""
    known, given = list(COMMANDS), [name.lower()]
    if name in known:
        parser = argparse.ArgumentParser()
        COMMANDS[name].add_arguments(parser)
        known = re.findall(r"--[a-z-]+", parser.format_usage())
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        given = [option for option in options if option not in known]
    close = (difflib.get_close_matches(word, known, n=1) for word in given)
    return next((match[0] for match in close if match), "")


def main(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name.

    Returns:
        The exit status: 0 on success. After a message on stderr: 2 if the arguments are wrong (as
        with argparse), 1 if the command failed, 130 after Ctrl-C.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it warns about torchvision
    print_any_character()
    words = hyphenated(arguments)
    try:
        args = make_parser().parse_args(words)
    except SystemExit as end:
        if end.code and (meant := suggestion(words)):
            sys.stderr.write(f"did you mean {meant}?\n")
        raise
    try:
        args.command(args)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, ChoiceError) else 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # by name: importing torch is slow
            raise
        sys.stderr.write(f"{error}\nMemory ran out: lower --rows-per-pass, or take --device cpu\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130  # as shells report Ctrl-C
    except BrokenPipeError:  # `show | head`
        sys.stderr.close()
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
