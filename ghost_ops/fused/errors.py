"""Why a module runs as plain PyTorch."""


class Unfusable(Exception):
    """Why a module runs as plain PyTorch, in a sentence."""


class NotNow(Unfusable):
    """As :class:`Unfusable`, for a cause that may end without any change of structure."""
