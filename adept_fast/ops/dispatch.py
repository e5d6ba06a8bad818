"""The implementation of each operator: a table of rules with conditions and reasons, and the choice by it.

At the first call on a device, the rules that cannot apply there are dropped; a call takes the first of the
others that does not refuse its arguments. A kernel is one operator of torch, which itself runs C++ or CUDA.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from adept_fast.ops import cpu, cuda, cuda_gemm, kernels, logprobs, optional, reference
from adept_fast.ops.gemm import Gemm
from adept_fast.ops.sample import sample
from adept_fast.quantization.formats import MatrixSpec, WeightFormat, float_format
from adept_fast.quantization.layout_gpu_tiles import GpuFloatTiles
from adept_fast.quantization.layouts import ROW_MAJOR, TILES, layout_of
from adept_fast.quantization.matrix import Matrix

P = ParamSpec("P")
R = TypeVar("R")
Refusal = Callable[..., str | None]


class Rule(NamedTuple):
    """An implementation of an operator on a type of device.

    ``refusal`` returns why a call is not for this rule, or None. It takes the activations or ids of the call,
    then the arguments that its parameters are named after; ``*matrices`` stands for all matrices.
    """

    operator: str
    device: str
    implementation: str
    condition: str
    reason: str
    refusal: Refusal | None
    needs_extension: bool

    def unavailable(self, device: torch.device) -> str | None:
        return _BACKENDS[self.device].unavailable(device) if self.needs_extension else None

    def pick(self) -> Callable[[Sequence[Any]], Sequence[Any]]:
        """Returns from an operator's arguments those that ``refusal`` takes."""
        definition, taken = DEFINITIONS[self.operator], inspect.signature(self.refusal or len).parameters
        names = list(inspect.signature(definition).parameters)
        positions = [_input_position(definition)]
        for name in list(taken)[1:]:
            positions += kernels.matrix_positions(definition) if name == "matrices" else [names.index(name)]
        return operator.itemgetter(*positions)

    def function(self) -> Callable[..., Any]:
        definition = DEFINITIONS[self.operator]
        if self.implementation == "kernel":
            by_decode = self.operator == "prefill_attention" and self.device == "cpu"
            return kernels.prefill_attention if by_decode else kernels.kernel(definition)
        if self.implementation == "decode kernel":
            return cuda.attend_in_groups
        if self.implementation == "gemm":
            return cast(Callable[..., Any], getattr(_GEMMS[self.device].gemm, self.operator))
        return optional.prefill_attention if self.implementation == "flash-attn" else definition


class Choice(NamedTuple):
    """The implementation of an operator for a call, and why."""

    operator: str
    implementation: str
    reason: str


DEFINITIONS: dict[str, Callable[..., Any]] = {  # in the order of a decode step
    definition.__name__: definition
    for definition in (
        reference.embed,
        reference.layernorm_qkv,
        reference.rotary_append,
        reference.decode_attention,
        reference.linear_residual,
        reference.mlp,
        reference.lm_head,
        reference.prefill_attention,
        sample,
        logprobs.token_logprobs,
        reference.update_decode_state,
    )
}
_BACKENDS: dict[str, Any] = {"cpu": cpu, "cuda": cuda}
_GEMMS: dict[str, Any] = {"cpu": cpu, "cuda": cuda_gemm}
_PROJECTIONS = ("layernorm_qkv", "linear_residual", "lm_head")
_PRODUCTS = (*_PROJECTIONS, "mlp")
_CACHE = ("rotary_append", "decode_attention")
_HEAD_DIM = f"head_dim a multiple of {cuda.VECTOR} up to {cuda.MAX_HEAD_DIM}"
_BUILT = "extension built"
_RUNS = "extension built with CUDA, compute capability 8.0"
_NO_GEMM = f"at most {cpu.MAX_STREAMED_TOKENS} tokens, or not bfloat16, or no AVX512_BF16"
_FEW = f"at most {cuda.MAX_TOKENS} tokens"


def _rules(
    device: str,
    operators: Iterable[str],
    implementation: str,
    condition: str,
    reason: str,
    refusal: Refusal | None = None,
) -> Iterator[Rule]:
    needs_extension = condition.startswith(_BUILT)
    for name in operators:
        yield Rule(name, device, implementation, condition, reason, refusal, needs_extension)


TABLE: tuple[Rule, ...] = (
    *_rules(
        "cuda",
        _PRODUCTS,
        "kernel",
        f"{_RUNS}; {_FEW}; float16, bfloat16, or packed for a GPU, all in tiles or none; "
        f"columns a multiple of {cuda.VECTOR}",
        "memory-bound: it reads the weights once",
        cuda.refuses_matrices,
    ),
    *_rules("cuda", _PRODUCTS, "gemm", "always", "torch's GEMM"),
    *_rules(
        "cuda",
        ("rotary_append",),
        "kernel",
        f"{_RUNS}; {_HEAD_DIM}",
        "one launch for all sequences",
        cuda.refuses_cache,
    ),
    *_rules(
        "cuda",
        ("decode_attention",),
        "kernel",
        f"{_RUNS}; {_FEW}; {_HEAD_DIM}",
        "one launch for all sequences",
        cuda.refuses_queries,
    ),
    *_rules(
        "cuda",
        ("embed",),
        "kernel",
        f"{_RUNS}; float16, bfloat16 or float32",
        "it also reads pinned memory of the host",
        cuda.refuses_table,
    ),
    *_rules("cuda", ("sample", "update_decode_state"), "kernel", _RUNS, "one launch"),
    *_rules(
        "cuda",
        ("token_logprobs",),
        "kernel",
        f"{_RUNS}; at most {cuda.MAX_TOP_LOGPROBS} tokens besides the chosen one, and {cuda.MAX_VOCAB} rows",
        "it reads the logits once",
        cuda.refuses_logprobs,
    ),
    *_rules(
        "cuda",
        ("prefill_attention",),
        "flash-attn",
        "named by ADEPT_FAST_OPTIONAL, installed, and as exact as torch on this GPU",
        "chosen by ADEPT_FAST_OPTIONAL; its bits may depend on the chunks of a prompt",
        optional.refuses_cache,
    ),
    *_rules(
        "cuda",
        ("prefill_attention",),
        "kernel",
        f"{_RUNS}; a cache in float16 or bfloat16; {_HEAD_DIM}",
        "on tensor cores",
        cuda.refuses_prompt,
    ),
    *_rules(
        "cuda",
        ("prefill_attention",),
        "decode kernel",
        f"{_RUNS}; {_HEAD_DIM}",
        "query by query",
        cuda.refuses_cache,
    ),
    *_rules("cuda", set(DEFINITIONS).difference(_PRODUCTS), "reference", "always", "plain PyTorch"),
    *_rules(
        "cpu",
        _PROJECTIONS,
        "kernel",
        f"{_BUILT}; {_NO_GEMM}",
        "it reads the weights once",
        cpu.prefers_gemm,
    ),
    *_rules(
        "cpu",
        ("mlp",),
        "kernel",
        f"{_BUILT}; {_NO_GEMM}, or counts",
        "it reads only the down-projection's rows of active neurons",
        cpu.prefers_gemm_mlp,
    ),
    *_rules("cpu", _PRODUCTS, "gemm", _BUILT, "torch's GEMM"),
    *_rules("cpu", (*_CACHE, "update_decode_state", "prefill_attention"), "kernel", _BUILT, "one pass"),
    *_rules("cpu", DEFINITIONS, "reference", "always", "plain PyTorch"),
)


def table(operator: str | None = None, device: str | None = None) -> list[Rule]:
    """The rules in the order in which they are tried, of one operator and type of device if given."""
    return [rule for rule in TABLE if operator in (None, rule.operator) and device in (None, rule.device)]


def device_type(device: torch.device) -> str:
    """The type of device whose rules apply: ``cuda``, or ``cpu`` for all others."""
    return "cuda" if device.type == "cuda" else "cpu"


class _Steps(dict[torch.device, list[tuple[Refusal | None, Callable[..., Any], Callable[..., Any]]]]):
    """For each device the rules of an operator that can apply: refusal, its arguments, implementation."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self._operator = operator

    def __missing__(self, device: torch.device) -> list[Any]:
        rules = table(self._operator, device_type(device))
        self[device] = [
            (rule.refusal, rule.pick(), rule.function()) for rule in rules if rule.unavailable(device) is None
        ]
        return self[device]


_STEPS = {name: _Steps(name) for name in DEFINITIONS}


def forget() -> None:
    """Select the rules anew at the next call, for tests."""
    for steps in _STEPS.values():
        steps.clear()


def _input_position(definition: Callable[..., Any]) -> int:
    """The position of the activations or ids, on whose device the operator runs."""
    names = list(inspect.signature(definition).parameters)
    return names.index("ids") if "ids" in names else 0


def _dispatched(definition: Callable[P, R]) -> Callable[P, R]:
    signature, steps = inspect.signature(definition), _STEPS[definition.__name__]
    count, position = len(signature.parameters), _input_position(definition)

    @functools.wraps(definition)
    def run(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != count:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args
        for refusal, pick, function in steps[args[position].device]:
            if refusal is None or refusal(*pick(args)) is None:
                return function(*args)
        raise AssertionError("the last rule refuses no call")

    return cast(Callable[P, R], run)


embed = _dispatched(reference.embed)
layernorm_qkv = _dispatched(reference.layernorm_qkv)
rotary_append = _dispatched(reference.rotary_append)
decode_attention = _dispatched(reference.decode_attention)
linear_residual = _dispatched(reference.linear_residual)
mlp = _dispatched(reference.mlp)
lm_head = _dispatched(reference.lm_head)
prefill_attention = _dispatched(reference.prefill_attention)
token_logprobs = _dispatched(logprobs.token_logprobs)
update_decode_state = _dispatched(reference.update_decode_state)


def slot_sampler(device: torch.device) -> Callable[..., Tensor] | None:
    """The kernel that samples with the settings of all slots, which stay on the device; None without one.

    Its arguments are logits, slots and positions, then for each slot temperature, top_k, top_p, min_p,
    repetition_penalty, frequency_penalty, presence_penalty, is_biased (bool: whether logit_bias applies),
    seed, logit_bias, seen and counts; it returns int64 [rows] as ``ops/sample.py`` defines it. It adds the
    chosen tokens of slots with such a penalty to ``seen`` and ``counts``. A captured graph of the call stays
    valid when settings change.
    """
    rule = table("sample", device_type(device))[0]
    if rule.implementation != "kernel" or rule.unavailable(device) is not None:
        return None
    return cast(Callable[..., Tensor], kernels.operators.sample)


def prefill_gemm(w: Matrix) -> Gemm | cuda_gemm.CudaGemm | None:
    """What multiplies any number of a prompt's tokens by matrices like ``w``; None for the operators above.

    It computes few tokens too where it is faster for many, so that the chunks of a prompt change no bit.
    """
    if device_type(w.device) == "cuda":
        return cuda_gemm.prefill_gemm
    return cpu.gemm if cpu.has_gemm(w) else None


def prefill_settings(device: torch.device) -> AbstractContextManager[None]:
    """For a chunk of a prompt: settings of torch that each product would otherwise change and restore."""
    return cuda_gemm.sums_in_float32 if device_type(device) == "cuda" else nullcontext()


def explain(
    device: torch.device,
    tokens: int = 1,
    *,
    dtype: torch.dtype = torch.float16,
    weights: WeightFormat | None = None,
    layout: str = ROW_MAJOR,
    hidden_size: int = 64,
    cache_dtype: torch.dtype = torch.float16,
    head_dim: int = 64,
) -> list[Choice]:
    """The implementation of each operator for a call with ``tokens`` tokens, in the order of a decode step.

    ``weights`` is the format of packed matrices, ``dtype`` that of the others and of the embedding;
    ``layout`` is that of all matrices.
    """

    def example(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    table, cache_layer = example(1, hidden_size), example(2, 1, 1, 1, head_dim, dtype=cache_dtype)
    matrix: Matrix = table
    if weights is not None:
        matrix = layout_of(device, layout).empty(MatrixSpec(weights, (1, hidden_size)), device)
    elif layout == TILES:
        matrix = GpuFloatTiles.empty(MatrixSpec(float_format(dtype), (1, hidden_size)), device)
    known: dict[Any, Any] = {"Matrix": matrix, "cache_layer": cache_layer, "table": table, "count": 1}
    x = example(tokens, 1, dtype=torch.float32)
    choices = []
    for name, definition in DEFINITIONS.items():
        parameters = inspect.signature(definition).parameters.values()
        arguments = [known.get(p.annotation, known.get(p.name)) for p in parameters]
        arguments[_input_position(definition)] = x
        choices.append(explain_call(name, arguments))
    return choices


def explain_call(operator: str, arguments: Sequence[Any]) -> Choice:
    """The implementation for a call with these arguments, all of them by position."""
    device = arguments[_input_position(DEFINITIONS[operator])].device
    refusals: list[str] = []
    for rule in table(operator, device_type(device)):
        refusal = rule.unavailable(device)
        if refusal is None and rule.refusal is not None:
            refusal = rule.refusal(*rule.pick()(arguments))
        if refusal is None:
            language = [_BACKENDS[rule.device].language()] if rule.implementation == "kernel" else []
            reasons = dict.fromkeys([*language, rule.reason, *refusals])  # without repetition
            return Choice(operator, rule.implementation, "; ".join(reasons))
        refusals.append(refusal)
    raise AssertionError("the last rule refuses no call")
