"""What a run leaves behind, and what one does with it."""

from front.front import Front, FrontError

__all__ = ["Front", "FrontError"]
