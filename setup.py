"""Packaging entry point: metadata stands in pyproject.toml; what must be compiled is declared here."""

from setuptools import setup

setup()
