"""``ghost_ops.profile``: how long each module of a net takes plain, fused and frozen, and how long it must take."""

from .report import Left, ModuleProfile, Profile, Way
from .run import STEPS, profile

__all__ = ["STEPS", "Left", "ModuleProfile", "Profile", "Way", "profile"]
