"""Batches on a cluster, by Ray Data. Imports of this package need the extra ``ray``."""
