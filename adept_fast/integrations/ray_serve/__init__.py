"""Serves a model on the machines of a Ray cluster: ``serve run adept_fast.integrations.ray_serve:app``."""

from adept_fast.integrations.ray_serve.application import app

__all__ = ["app"]
