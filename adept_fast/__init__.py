"""adept-fast: inference of the Persimmon-8B language model and its family, on a CPU or a GPU."""

from __future__ import annotations

# As type checkers know it. Nothing is imported: the program cannot catch Ctrl-C before this file has run.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from adept_fast.arguments import ParameterError
    from adept_fast.checkpoint import CheckpointError
    from adept_fast.config import ConfigError, PersimmonConfig
    from adept_fast.engine.runtime import Runtime
    from adept_fast.engine.scoring import Score
    from adept_fast.engine.sequence import Generation, GenerationError, GenerationEvent, Request, TokenLogprob
    from adept_fast.engine.text_stream import TextStream
    from adept_fast.memory.advice import InsufficientMemoryError
    from adept_fast.memory.plan import MemoryPlan
    from adept_fast.sampling import SamplingParams
    from adept_fast.tokenizer.tokenizer import Tokenizer, TokenizerError

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Generation",
    "GenerationError",
    "GenerationEvent",
    "InsufficientMemoryError",
    "MemoryPlan",
    "ParameterError",
    "PersimmonConfig",
    "Request",
    "Runtime",
    "SamplingParams",
    "Score",
    "TextStream",
    "TokenLogprob",
    "Tokenizer",
    "TokenizerError",
]

_MODULES = {
    "CheckpointError": "checkpoint",
    "ConfigError": "config",
    "Generation": "engine.sequence",
    "GenerationError": "engine.sequence",
    "GenerationEvent": "engine.sequence",
    "InsufficientMemoryError": "memory.advice",
    "MemoryPlan": "memory.plan",
    "ParameterError": "arguments",
    "PersimmonConfig": "config",
    "Request": "engine.sequence",
    "Runtime": "engine.runtime",
    "SamplingParams": "sampling",
    "Score": "engine.scoring",
    "TextStream": "engine.text_stream",
    "TokenLogprob": "engine.sequence",
    "Tokenizer": "tokenizer",
    "TokenizerError": "tokenizer",
}

if not TYPE_CHECKING:  # a type checker would take any name for one of the package's

    def __getattr__(name: str) -> object:
        """Import what is asked for, and torch with it: the program has to be able to begin before that."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        globals()[name] = found = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
