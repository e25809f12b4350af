"""Databases behind the grid, and what a pump needs of them.

Who calls: `spacegrid.pump`, and whoever sets one up.
"""
