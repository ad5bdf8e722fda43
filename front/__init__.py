"""The result of a run: read it, choose from it, show it, export it."""

from front.errors import FrontError
from front.front import Front

__all__ = ["Front", "FrontError"]
