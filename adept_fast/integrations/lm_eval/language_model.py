"""lm-eval's model ``adept-fast``: a Runtime answers its three kinds of requests."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import lm_eval.models  # noqa: F401 (lm-eval registers its own models only if none is registered yet)
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from adept_fast.arguments import ParameterError, flag, integer, optional_flag
from adept_fast.checkpoint import dtype_name
from adept_fast.engine.runtime import Runtime
from adept_fast.integrations.lm_eval.generation import DEFAULT_NEW_TOKENS, generation_params
from adept_fast.system.short_text import short_repr

_MAX_ROWS = 16  # sequences in a batch of the decode kernels: the meaning of batch_size=auto
_BATCHES_AT_ONCE = 4  # batches per update of the progress bar

_log = logging.getLogger(__name__)


@register_model("adept-fast")
class AdeptFastLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A checkpoint for lm-eval: ``--model adept-fast --model_args checkpoint=demo,dtype=float32``.

    Args:
        checkpoint: ``demo``, a path or a hub id, as for ``Runtime.load``; so are ``revision``, ``device``,
            ``dtype``, ``weights`` and ``cache_dtype``.
        max_length: the maximum tokens of a sequence; by default the model's context, or what fits in memory.
        batch_size: sequences in a batch; ``auto`` is 16.
        max_batch_size: an upper bound of ``batch_size``.
        add_bos: whether BOS begins a prompt; by default as in the checkpoint.
        trust_remote_code: no effect; lm-eval's command adds it for data sets.

    Contexts that are too long lose their beginning, with a warning.
    """

    def __init__(
        self,
        checkpoint: str = "demo",
        *,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        weights: str | None = None,
        cache_dtype: str = "float16",
        max_length: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        add_bos: bool | None = None,
        trust_remote_code: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ParameterError(
                f"model_args has {next(iter(unknown))!r}; expected checkpoint, revision, device, dtype, "
                f"weights, cache_dtype, max_length, batch_size, max_batch_size or add_bos"
            )
        flag("trust_remote_code", trust_remote_code)
        add_bos = optional_flag("add_bos", add_bos)
        if max_length is not None:
            max_length = integer("max_length", max_length, 1)
        self.runtime = Runtime.load(
            checkpoint,
            revision=revision,
            device=_device(device),
            dtype=dtype,
            weights=weights,
            cache_dtype=cache_dtype,
            max_seq_len=max_length,
            max_batch_size=_batch_size(batch_size, max_batch_size),
        )
        self._checkpoint = str(checkpoint)
        self._add_bos = self.runtime.tokenizer.add_bos if add_bos is None else add_bos

    @property
    def eot_token_id(self) -> int | None:
        return self.runtime.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int | None:
        """The token before a text without context."""
        return self.runtime.tokenizer.bos_id

    @property
    def max_length(self) -> int:
        return self.runtime.max_seq_len

    @property
    def max_gen_toks(self) -> int:
        return DEFAULT_NEW_TOKENS

    @property
    def batch_size(self) -> int:
        return self.runtime.max_batch_size

    @property
    def tokenizer_name(self) -> str:
        return self._checkpoint.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The jinja source of the only template, if ``chat_template`` is true."""
        tokenizer = self.runtime.tokenizer
        return tokenizer.chat_format.source(tokenizer.add_bos) if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation; system messages are left out if the format has no such role."""
        system = self.runtime.tokenizer.chat_format.has_system_role
        known = [message for message in chat_history if system or message["role"] != "system"]
        if len(known) < len(chat_history):
            _log.warning("the chat format has no system role: %r is left out", chat_history[0]["content"])
        return self.runtime.tokenizer.apply_chat_template(
            known, add_generation_prompt=add_generation_prompt, tokenize=False
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_unused: Any) -> list[int]:
        """Token ids; BOS by name at the beginning, as from a chat template, becomes that token."""
        tokenizer = self.runtime.tokenizer
        if add_special_tokens is None and tokenizer.chat_format.writes_special_tokens:
            ids = tokenizer.encode_rendered(string)
            begins = bool(ids) and ids[0] == tokenizer.bos_id
            return ids if begins else tokenizer.encode_rendered(string, add_bos=self._add_bos)
        if add_special_tokens is None and tokenizer.bos_id is not None:
            bos = tokenizer.piece(tokenizer.bos_id)
            if string.startswith(bos):
                return [tokenizer.bos_id, *tokenizer.encode(string.removeprefix(bos), add_bos=False)]
        add_bos = self._add_bos if add_special_tokens is None else add_special_tokens
        return tokenizer.encode(string, add_bos=add_bos)

    def get_model_info(self) -> dict[str, Any]:
        """Facts that lm-eval writes beside its results."""
        placement = self.runtime.placement
        return {
            "model_num_parameters": self.runtime.config.num_parameters,
            "model_dtype": dtype_name(placement.dtype),
            "model_weights": None if placement.weights is None else placement.weights.name,
            "model_device": str(placement.device),
        }

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-probability of each continuation after its context, and whether it is the greedy text.

        An empty context becomes BOS. Raises ParameterError for a continuation without a token, as lm-eval's
        own models do.
        """
        for request in requests:
            if not any(request.args):
                raise _no_continuation(request.args)
        scored: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scored

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_unused: Any,
    ) -> list[tuple[float, bool]]:
        for texts, _, continuation in requests:
            if not continuation:
                raise _no_continuation(texts)
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        scored = self.runtime.score_continuations(pairs)
        found = dict(tqdm(scored, total=len(pairs), desc="Scoring continuations", disable=disable_tqdm))
        answers = [(found[index].total, found[index].is_greedy) for index in range(len(pairs))]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text after BOS, in windows of ``max_length`` if it is longer."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            own = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            before = len(windows)
            windows += [(None, *make_disjoint_window(window)) for window in own]
            counts.append(len(windows) - before)
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        totals = []
        for request, count in zip(requests, counts, strict=True):
            totals.append(math.fsum(next(scores)[0] for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text after each context, up to a stop string."""
        prompts: list[list[int]] = []
        params = []
        for index, (context, settings) in enumerate(request.args for request in requests):
            params.append(generation_params(settings, self.max_length, index))
            room = self.max_length - (params[-1].max_new_tokens or 0)
            ids = self.tok_encode(context)
            if len(ids) > room:
                _log.warning("a context of %d tokens is cut to its last %d", len(ids), room)
            prompts.append(ids[-room:])
        longest_first = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        texts: dict[int, str] = {}
        with tqdm(total=len(prompts), desc="Generating", disable=disable_tqdm) as bar:
            step = self.batch_size * _BATCHES_AT_ONCE
            for start in range(0, len(prompts), step):
                indices = longest_first[start : start + step]
                generations = self.runtime.generate(
                    [prompts[index] for index in indices], [params[index] for index in indices]
                )
                for index, generation in zip(indices, generations, strict=True):
                    texts[index] = generation.text
                    self.cache_hook.add_partial("generate_until", requests[index].args, generation.text)
                bar.update(len(indices))
        return [texts[index] for index in range(len(prompts))]

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """A context that fits before the continuation, whose last token is never read."""
        if len(continuation) > self.max_length:
            raise ParameterError(
                f"a continuation has {len(continuation)} tokens; "
                f"expected at most max_length {self.max_length}"
            )
        room = self.max_length + 1 - len(continuation)
        if len(context) > room:
            _log.warning("a context of %d tokens is cut to its last %d", len(context), room)
        return context[-room:], continuation


def _no_continuation(texts: tuple[str, str] | None) -> ParameterError:
    context, continuation = texts or ("", "")
    return ParameterError(
        f"the continuation {short_repr(continuation)} adds no token to the context {short_repr(context)}; "
        f"expected at least one"
    )


def _device(name: str | None) -> str:
    """The device to load on; cuda:0 is the default of lm-eval's command, so it may be missing."""
    if name == "cuda:0" and not torch.cuda.is_available():
        _log.warning("this torch sees no CUDA device: running on the CPU")
        return "cpu"
    return name or "auto"


def _batch_size(batch_size: int | str, largest: int | None) -> int:
    if largest is not None:
        largest = integer("max_batch_size", largest, 1)
    if isinstance(batch_size, str) and batch_size.startswith("auto"):
        return min(_MAX_ROWS, largest or _MAX_ROWS)
    is_text = isinstance(batch_size, str) and batch_size.isascii() and batch_size.isdecimal()
    try:
        count = integer("batch_size", int(batch_size) if is_text else batch_size, 1)
    except ValueError as error:
        raise ParameterError(
            f"batch_size is {short_repr(batch_size)}; expected a positive integer or auto"
        ) from error
    return min(count, largest or count)
