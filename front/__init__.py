"""What a run leaves behind, and what one does with it."""

from front.errors import FrontError
from front.front import Front

__all__ = ["Front", "FrontError"]
