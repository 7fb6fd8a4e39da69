"""Fixtures of the export tests: one nano model, exported once."""

from nano import bundle, checkpoint

__all__ = ["bundle", "checkpoint"]
