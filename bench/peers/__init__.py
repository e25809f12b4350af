"""The side-by-side harness: spacegrid and what people use instead, in one run on one machine.

`make bench-peers` runs it. Contenders take turns (A B A B), a repetition is a window of seconds,
and the figure is the median ratio with its smallest and largest repetition. Servers are pinned to
core 0, the load to core 1.
"""
