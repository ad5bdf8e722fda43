"""Arguments that several commands of `mo_front.py` share, and the policy they mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from config.settings.declared import expand_home
from config.settings.files import path
from config.settings.terminal import typed_text
from front.errors import ChoiceError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from front.front import Front
    from front.member import Blend, FrontPolicy


def numbers(text: str) -> tuple[float, ...]:
    """`0.3,0.7` as numbers; argparse turns a ValueError into its message."""
    return tuple(float(part) for part in text.split(","))


numbers.__name__ = "list of numbers such as 0.3,0.7"


def _whole(name: str, low: int, end: float = math.inf) -> Callable[[str], int]:
    """A reader of whole numbers from `low` to below `end`, for argparse.

    Args:
        name: what argparse says was expected.
        low: the smallest.
        end: one more than the largest.
    """

    def read(text: str) -> int:
        number = int(text)
        if not low <= number < end:
            raise ValueError
        return number

    read.__name__ = name
    return read


def text(argument: str) -> str:
    """A prompt; argparse turns a ValueError into its message."""
    return typed_text(argument)


text.__name__ = "text in UTF-8"
positive = _whole("whole number of at least 1", 1)
at_least_two = _whole("whole number of at least 2", 2)
# The seeds that follow fit 63 bits, too, as random generators want them.
seed = _whole("whole number of at least 0 and less than 2**62", 0, 2**62)
port = _whole("whole number from 0, which takes a free one, to 65535", 0, 2**16)


def _bound(text: str) -> tuple[str, float]:
    """`name=value`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError
    return name, float(value)


_bound.__name__ = "bound such as aesthetic_score=5.8"


def add_run(parser: argparse.ArgumentParser) -> None:
    """The run directory."""
    parser.add_argument(
        "run", type=path, help="run directory or a copy of its front; latest: the newest in logs"
    )


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The ways to say which policy is meant."""
    add_run(parser)
    parser.add_argument(
        "--weights",
        type=numbers,
        help="preference, one number per objective in their order, sum 1: 0.3,0.7",
    )
    parser.add_argument("--policy", metavar="ID", help="a policy, or a measured blend, by name")
    parser.add_argument(
        "--at-least",
        type=_bound,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="smallest acceptable report return of an objective, raw units; may be repeated",
    )
    parser.add_argument(
        "--with-blends", action="store_true", help="choose among the measured blends, too"
    )


def add_blend(parser: argparse.ArgumentParser) -> None:
    """To blend instead of picking."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--blend",
        action="store_true",
        help="with --weights: the blend of the neighbours instead of the best policy",
    )
    group.add_argument(
        "--member",
        action="store_true",
        help="with --weights, of a run with agents.kind=conditioned: the family's member there",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Where the base model is, where to run it, and how much of it at a time."""
    parser.add_argument(
        "--model",
        type=expand_home,
        default="",
        help="folder or hub id, if the base model is not where it was",
    )
    parser.add_argument(
        "--device", default="", help="cuda, cpu, ...; default: a GPU if there is one"
    )
    parser.add_argument(
        "--rows-per-pass",
        type=positive,
        default=0,
        help="UNet rows at a time; lower it if memory runs out; default: the run's",
    )


def add_clip(parser: argparse.ArgumentParser) -> None:
    """The CLIP of a taste."""
    parser.add_argument(
        "--clip",
        type=expand_home,
        default="",
        help="folder or hub id of the CLIP that the taste is learnt on; default: as before, or the "
        "embedded one",
    )


def guidance(text: str) -> float:
    """A guidance scale, 1 being none; argparse turns a ValueError into its message."""
    number = float(text)
    if not 1 <= number < math.inf:
        raise ValueError
    return number


guidance.__name__ = "number of at least 1, which is no guidance"


def plot_file(text: str) -> Path:
    """Where to draw a plot; argparse turns a ValueError into its message."""
    file = path(text)
    if file.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError
    return file


plot_file.__name__ = "name that ends in .png, .pdf or .svg"


def add_out(parser: argparse.ArgumentParser, *, is_required: bool = False) -> None:
    """Where to write an adapter, if anywhere."""
    parser.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        required=is_required,
        help="write an adapter with a model card and pictures into this new folder",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace an export that lies in --out, nothing else"
    )


def choose(front: Front, args: argparse.Namespace) -> FrontPolicy | Blend:
    """The policy or blend that the arguments of `add_choice` mean.

    Raises:
        FrontError: if they contradict each other, or nothing answers them.
    """
    if args.policy is not None:
        if args.weights is not None or args.at_least:
            raise ChoiceError("--policy names a policy; leave out --weights and --at-least")
        return front.policy(args.policy)
    if args.weights is None and not args.at_least and len(front.policies) == 1:
        return front.policies[0]  # there is no other
    if args.weights is None and not args.at_least:
        raise ChoiceError(
            "say which policy: --weights 0.3,0.7, --policy ID or --at-least NAME=VALUE"
        )
    return front.pick(args.weights, dict(args.at_least), with_blends=bool(args.with_blends))


def choose_or_blend(front: Front, args: argparse.Namespace) -> FrontPolicy | Blend:
    """As `choose`, or with --blend or --member what these make of the weights.

    Raises:
        FrontError: see `choose`.
    """
    if not (args.blend or args.member):
        return choose(front, args)
    if args.weights is None or args.policy is not None or args.at_least:
        raise ChoiceError(f"--{'blend' if args.blend else 'member'} goes with --weights alone")
    return front.blend(args.weights) if args.blend else front.member(args.weights)
