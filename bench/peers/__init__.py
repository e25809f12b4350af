"""The side-by-side harness: spacegrid and what people use instead, in one run on one machine.

`make bench-peers` runs it. Contenders take turns (A B B A) in windows of half a second, so that a
machine that changes its speed does so to both; the figure is the median ratio of the pairs, with
the smallest and the largest. Servers are pinned to core 0, the load to core 1.
"""
