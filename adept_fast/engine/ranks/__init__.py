"""Tensor parallelism: the processes of the ranks, what the first one tells the others, and how they end.

The first rank is the caller's process. It runs the engine as if it had the whole model; the others repeat
each pass over the weights on their parts (``follower.py``). All sampling is the first rank's.
"""
