"""Runs the system locally: the embedded stack, its emulator, the demo and the reconciliation of its results."""

from handler.local.emulator import StackError
from handler.local.stack import EmbeddedStack

__all__ = ["EmbeddedStack", "StackError"]
