"""Persimmon as torch modules: the classes that transformers' users know, on the runtime's decoder."""

from __future__ import annotations

from adept_fast.modeling.cache import KeyValueCache
from adept_fast.modeling.config import PersimmonConfig
from adept_fast.modeling.decoder import PersimmonModel
from adept_fast.modeling.heads import (
    PersimmonForCausalLM,
    PersimmonForSequenceClassification,
    PersimmonForTokenClassification,
)

__all__ = [
    "KeyValueCache",
    "PersimmonConfig",
    "PersimmonForCausalLM",
    "PersimmonForSequenceClassification",
    "PersimmonForTokenClassification",
    "PersimmonModel",
]
