"""Request: one call of transformers' ``generate``, for the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.generation import logits_process

from adept_fast.arguments import ParameterError
from adept_fast.integrations.transformers.compatibility import CACHE_NAME
from adept_fast.integrations.transformers.not_served import NotServedError
from adept_fast.integrations.transformers.returned_cache import continues_from, is_given, read_cache
from adept_fast.sampling import MAX_DRAFTS, SamplingParams

# Arguments of a decoding method or its model that are read here, or that only transformers' decoding needs.
_KNOWN_KEYWORDS = {
    "attention_mask",
    "cache_position",
    "inputs_tensor",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "position_ids",
    "tokenizer",
    "use_cache",
    CACHE_NAME,
}
_KNOWN_CACHES = (None, "dynamic", "dynamic_full", "static")  # the cache of the runtime replaces these


@dataclass(frozen=True)
class Request:
    """The prompts of a batch and the settings of their continuation.

    ``input_ids`` is int64 [rows, columns]; the columns before ``starts[row]`` are padding.
    """

    input_ids: Tensor
    starts: list[int]
    params: SamplingParams  # of every row, without the seed
    seen: list[Tensor]  # for each row, the ids that a repetition penalty counts: int64 [tokens]
    use_cache: bool = True  # whether a cache is returned with more than ids
    cache: Any = None  # a DynamicCache from the runtime, to continue from

    @property
    def prompts(self) -> list[list[int]]:
        rows = self.input_ids.tolist()
        return [row[start:] for row, start in zip(rows, self.starts, strict=True)]

    def past(self) -> list[Tensor]:
        """The keys and values of each row to continue from; empty without a cache. See ``read_cache``."""
        if self.cache is None:
            return []
        return read_cache(self.cache, self.starts, self.input_ids.shape[1])

    def seeded(self) -> list[SamplingParams]:
        """The parameters of each row, with a seed from torch's generator."""
        rows = len(self.starts)
        if self.params.temperature == 0:
            return [self.params] * rows
        seeds: list[int] = torch.randint(2**63 - 1, (rows,), device="cpu").tolist()
        return [replace(self.params, seed=seed) for seed in seeds]


def read_request(
    input_ids: Tensor,
    processors: Iterable[Any],
    generation_config: Any,
    model_kwargs: Mapping[str, Any],
    prompt_lookup: int = 0,
) -> Request:
    """The request in the merged settings that transformers prepares for its own decoding.

    Raises NotServedError for a setting that the runtime does not support.
    """
    _check_keywords(generation_config, model_kwargs)
    cache = _cache_of(model_kwargs)
    starts = _starts(input_ids, model_kwargs.get("attention_mask"))
    past = 0 if cache is None else cache.get_seq_length()
    _check_positions(model_kwargs.get("position_ids"), starts, input_ids.shape[1], past)
    params, ignored = _read_processors(processors, bool(generation_config.do_sample))
    if params.repetition_penalty == 1:  # a penalty makes each choice depend on the previous one
        params = replace(params, prompt_lookup=min(prompt_lookup, MAX_DRAFTS))
    return Request(
        input_ids,
        starts,
        params,
        [ids[first:] for ids, first in zip(input_ids, _first_seen(ignored, len(starts)), strict=True)],
        use_cache=bool(model_kwargs.get("use_cache", True)),
        cache=cache,
    )


def _check_keywords(generation_config: Any, model_kwargs: Mapping[str, Any]) -> None:
    for name, value in model_kwargs.items():
        if name not in _KNOWN_KEYWORDS and value is not None and value is not False:
            raise NotServedError(name)
    if generation_config.return_dict_in_generate:
        for name in ("output_attentions", "output_hidden_states"):
            if getattr(generation_config, name, False):
                raise NotServedError(name)
    if generation_config.cache_implementation not in _KNOWN_CACHES:
        raise NotServedError(f"cache_implementation {generation_config.cache_implementation!r}")


def _cache_of(model_kwargs: Mapping[str, Any]) -> Any:
    """The cache to continue from, which the runtime returned; None if the caller passes none."""
    cache = model_kwargs.get(CACHE_NAME)
    if cache is None or not is_given(cache):
        return None  # transformers created it for its own decoding
    if not continues_from(cache):
        raise NotServedError("a cache that the caller made")
    return cache


def _starts(input_ids: Tensor, mask: Tensor | None) -> list[int]:
    """The column of each row's first token."""
    rows, columns = input_ids.shape
    if mask is None:
        return [0] * rows
    if mask.shape != input_ids.shape:
        raise NotServedError(f"an attention_mask of shape {list(mask.shape)}")
    attended = mask != 0  # [rows, columns]
    starts = columns - attended.sum(1)  # [rows]
    if not torch.equal(attended, torch.arange(columns, device=mask.device) >= starts[:, None]):
        raise NotServedError("padding that is not on the left")
    if columns in starts:
        raise NotServedError("a prompt of padding only")
    first: list[int] = starts.tolist()
    return first


def _check_positions(positions: Tensor | None, starts: list[int], columns: int, past: int) -> None:
    """Raises NotServedError unless the positions of each row count from 0.

    Some releases of transformers include the positions of the ``past`` columns, others do not.
    """
    if positions is None:
        return
    given = positions.shape[-1]
    begin = torch.tensor(starts, dtype=torch.int64, device=positions.device)[:, None]  # [rows, 1]
    counted = torch.arange(columns - given, columns, device=positions.device) - begin  # [rows, given]
    if given not in (columns, columns - past) or not bool(((positions == counted) | (counted < 0)).all()):
        raise NotServedError("position_ids")


def _read_processors(processors: Iterable[Any], do_sample: bool) -> tuple[SamplingParams, Any]:
    """The parameters of the prepared processors, and the columns that their penalty ignores."""
    settings: dict[str, Any] = {"temperature": 1.0 if do_sample else 0.0}
    ignored = None
    last = -1
    for processor in processors:
        index = next((at for at, known in enumerate(_PROCESSORS) if type(processor) is known.kind), None)
        if index is None or index <= last or not (do_sample or _PROCESSORS[index].when_greedy):
            raise NotServedError(f"the logits processor {type(processor).__name__}")
        last = index
        _check_filter(processor)
        settings |= _PROCESSORS[index].settings(processor)
        ignored = getattr(processor, "prompt_ignore_length", ignored)
    try:
        return SamplingParams(**settings), ignored
    except ParameterError as error:
        raise NotServedError(f"a setting: {error}") from error


@dataclass(frozen=True)
class _Processor:
    """A logits processor of transformers and the equal settings of SamplingParams."""

    kind: type
    settings: Callable[[Any], dict[str, Any]]
    when_greedy: bool = False  # whether greedy decoding supports it


# In the order in which transformers and the runtime apply them.
_PROCESSORS = [
    _Processor(
        logits_process.RepetitionPenaltyLogitsProcessor, lambda p: {"repetition_penalty": p.penalty}, True
    ),
    _Processor(logits_process.TemperatureLogitsWarper, lambda p: {"temperature": p.temperature}),
    _Processor(logits_process.TopKLogitsWarper, lambda p: {"top_k": p.top_k}),
    _Processor(logits_process.TopPLogitsWarper, lambda p: {"top_p": p.top_p}),
    _Processor(logits_process.MinPLogitsWarper, lambda p: {"min_p": float(p.min_p)}),
    _Processor(logits_process.LogitNormalization, lambda p: {}, True),  # changes scores but no choice
]


def _check_filter(processor: Any) -> None:
    if getattr(processor, "filter_value", -torch.inf) != -torch.inf:
        raise NotServedError(f"a filter_value of {processor.filter_value}")
    if getattr(processor, "min_tokens_to_keep", 1) != 1:
        raise NotServedError(f"min_tokens_to_keep {processor.min_tokens_to_keep}")


def _first_seen(ignored: int | Tensor | None, rows: int) -> list[int]:
    """The first column of each row that a repetition penalty counts."""
    return list(ignored.tolist()) if isinstance(ignored, Tensor) else [ignored or 0] * rows
