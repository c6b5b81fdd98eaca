"""Why a module runs as plain PyTorch, and errors in one line."""


class Unfusable(Exception):
    """Why a module runs as plain PyTorch, in a sentence."""


class NotNow(Unfusable):
    """A cause that may end without any change of structure, such as a mode or a dtype."""


def first_line(error: Exception) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
