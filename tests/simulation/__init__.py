"""Deterministic simulation of a whole cluster: one seed is one run, bit for bit.

Real are the data plane (`spacegrid._core.Node`), the client machine (`spacegrid._core.Client`), the
machines of python/spacegrid/machine and what the coordinator decides (`Authority`). Everything
around them is a model: clocks, network, processes, disks. `python -m simulation --help` runs seeds.
"""
