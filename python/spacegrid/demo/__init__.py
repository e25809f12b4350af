"""`spacegrid demo`: the main job on real processes, one of them killed, counted afterwards.

Two forms share everything but their orders: a made flash sale (`flash_sale`) and real orders from
a file (`real_orders`). `check` reads the databases afterwards without any code of the grid.
"""
