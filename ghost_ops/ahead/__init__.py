"""What happens before a call: what it would launch on a device, and compiling that ahead of time."""

from .warm_up import WarmUp, warm_up

__all__ = ["WarmUp", "warm_up"]
