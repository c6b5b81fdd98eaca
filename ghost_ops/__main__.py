"""``python -m ghost_ops``: the same as ``ghost-ops``."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="python -m ghost_ops")
