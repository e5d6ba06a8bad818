"""Runs transformers' own tests on this project's classes, from the source distribution of a release."""
