"""Space-Based Architecture for Python: a replicated in-memory data grid with units beside their data."""

from spacegrid._core import HashRing

__all__ = ["HashRing"]
