"""Why a module runs as plain PyTorch."""


class Unfusable(Exception):
    """Why a module runs as plain PyTorch, in a sentence."""


class NotNow(Unfusable):
    """A cause that may end without any change of structure, such as a mode or a dtype."""
