"""Tools for tests of applications that use spacegrid: real clusters on this machine."""

from spacegrid.testing.cluster import LocalCluster

__all__ = ["LocalCluster"]
