"""Batches: a file of requests to a file of answers, in the same order, which survives being killed."""
