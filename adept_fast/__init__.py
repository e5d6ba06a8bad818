"""adept-fast: the fastest, most pleasant way to run the Persimmon-8B language model and its family."""

from adept_fast.arguments import ParameterError
from adept_fast.checkpoint import CheckpointError
from adept_fast.config import ConfigError, PersimmonConfig
from adept_fast.memory import InsufficientMemoryError, MemoryPlan
from adept_fast.runtime import Runtime
from adept_fast.sampling import SamplingParams
from adept_fast.scoring import Score
from adept_fast.sequence import Generation, GenerationError, TokenLogprob
from adept_fast.text_stream import TextStream
from adept_fast.tokenizer import Tokenizer, TokenizerError

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Generation",
    "GenerationError",
    "InsufficientMemoryError",
    "MemoryPlan",
    "ParameterError",
    "PersimmonConfig",
    "Runtime",
    "SamplingParams",
    "Score",
    "TextStream",
    "TokenLogprob",
    "Tokenizer",
    "TokenizerError",
]
