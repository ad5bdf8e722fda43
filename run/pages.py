"""HTML pages from templates."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from pathlib import Path

    from jinja2 import Template


@cache  # compiling takes longer than rendering, and a run renders its pages again and again
def page_template(path: Path) -> Template:
    """A page's template: values are escaped, and a name that has none is an error.

    Args:
        path: of the template; what it includes lies beside it.
    """
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(path.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(path.name)
