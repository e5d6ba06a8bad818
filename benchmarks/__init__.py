"""Benchmarks of adept-fast and of its baselines: ``python -m benchmarks --help``."""
