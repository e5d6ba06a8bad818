"""adept-fast: inference of the Persimmon-8B language model and its family, on a CPU or a GPU."""

from __future__ import annotations

# As type checkers know it. Nothing is imported: the program cannot catch Ctrl-C before this file has run.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from adept_fast.arguments import ParameterError as ParameterError
    from adept_fast.checkpoint import CheckpointError as CheckpointError
    from adept_fast.config import ConfigError as ConfigError
    from adept_fast.config import PersimmonConfig as PersimmonConfig
    from adept_fast.engine.ranks.watch import RankError as RankError
    from adept_fast.engine.runtime import Runtime as Runtime
    from adept_fast.engine.scoring import Score as Score
    from adept_fast.engine.sequence import Generation as Generation
    from adept_fast.engine.sequence import GenerationError as GenerationError
    from adept_fast.engine.sequence import GenerationEvent as GenerationEvent
    from adept_fast.engine.sequence import Request as Request
    from adept_fast.engine.sequence import TokenLogprob as TokenLogprob
    from adept_fast.engine.text_stream import TextStream as TextStream
    from adept_fast.memory.advice import InsufficientMemoryError as InsufficientMemoryError
    from adept_fast.memory.plan import MemoryPlan as MemoryPlan
    from adept_fast.sampling import SamplingParams as SamplingParams
    from adept_fast.tokenizer import Tokenizer as Tokenizer
    from adept_fast.tokenizer import TokenizerError as TokenizerError

__version__ = "0.1.0"

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
    "RankError": "engine.ranks.watch",
    "Request": "engine.sequence",
    "Runtime": "engine.runtime",
    "SamplingParams": "sampling",
    "Score": "engine.scoring",
    "TextStream": "engine.text_stream",
    "TokenLogprob": "engine.sequence",
    "Tokenizer": "tokenizer",
    "TokenizerError": "tokenizer",
}
__all__ = [*_MODULES]

if not TYPE_CHECKING:  # a type checker would take any name for one of the package's

    def __getattr__(name: str) -> object:
        """Import a name, and torch with it, when it is first used: the program begins before that."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        globals()[name] = found = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
