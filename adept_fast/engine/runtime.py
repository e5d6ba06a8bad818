"""Runtime: a loaded checkpoint that generates, streams and scores text."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, SupportsIndex, overload

import torch

from adept_fast.arguments import (
    ParameterError,
    entries,
    flag,
    integer,
    one_of,
    optional_flag,
    optional_text,
    path_or_str,
    token_ids,
)
from adept_fast.checkpoint import Checkpoint, open_checkpoint
from adept_fast.config import PersimmonConfig
from adept_fast.engine.admission import Admission
from adept_fast.engine.engine import Engine
from adept_fast.engine.graphs import CUDA_GRAPHS, CaptureReport, LaunchPolicy
from adept_fast.engine.model_runner import ModelRunner
from adept_fast.engine.placement import Placement
from adept_fast.engine.ranks.launch import check_ranks
from adept_fast.engine.ranks.leading_runner import LeadingRunner
from adept_fast.engine.ranks.loading import load_ranks
from adept_fast.engine.ranks.team import Team
from adept_fast.engine.scoring import Likelihood, Score, ScoredSequence
from adept_fast.engine.sequence import Generation, Request
from adept_fast.engine.stats import Stats
from adept_fast.engine.text_stream import TextStream
from adept_fast.kv_cache import StaticKVCache
from adept_fast.memory.advice import explaining_out_of_memory
from adept_fast.memory.plan import MemoryPlan
from adept_fast.memory.workspace import max_rows
from adept_fast.model import Persimmon
from adept_fast.sampling import SamplingParams
from adept_fast.system.short_text import short_repr
from adept_fast.tokenizer.tokenizer import Tokenizer

Prompt = str | SequenceOf[int]

# What ``load`` takes of where the model is put.
_SETTINGS = (
    "device",
    "dtype",
    "cache_dtype",
    "weights",
    "weight_layout",
    "embedding",
    "max_seq_len",
    "max_batch_size",
)
_PROMPTS = "text, or a list of texts or of lists of token ids"


class Runtime:
    """A checkpoint on a device, with a cache for ``max_batch_size`` sequences of ``max_seq_len`` tokens.

    ``Runtime.load`` creates it. Several threads may use it: their requests share the steps of ``engine``,
    which also takes requests that do not block. A call within another one of the same thread, as from a
    signal handler, raises NestedRunError.
    """

    def __init__(
        self,
        model: Persimmon,
        tokenizer: Tokenizer,
        cache: StaticKVCache,
        plan: MemoryPlan,
        placement: Placement,
        load_seconds: float,
        cuda_graphs: str = "auto",
        admission: Admission = Admission(prefix_cache=True),  # noqa: B008 (it is immutable)
        team: Team | None = None,
    ) -> None:
        self.config: PersimmonConfig = model.config.whole
        self.tokenizer = tokenizer
        self.placement = placement
        self.load_seconds = load_seconds
        self._plan = plan
        policy = LaunchPolicy.on(model.device, max_rows(cache.max_batch_size), cache.max_seq_len, cuda_graphs)
        self.team = team
        of_model = model, cache, tokenizer.vocab_size, policy
        runner = ModelRunner(*of_model) if team is None else LeadingRunner(team, *of_model)
        self._close = weakref.finalize(self, team.close) if team else None
        self.engine = Engine(
            runner, tokenizer, lambda: explaining_out_of_memory(plan, during="generating"), admission
        )
        if team is not None:
            team.watch.on_failure.append(self.engine.wake)

    @classmethod
    def load(
        cls,
        path_or_name: str | Path | Checkpoint = "demo",
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        weights: str | None = None,
        weight_layout: str = "auto",
        max_seq_len: int | None = None,
        max_batch_size: int = 1,
        cache_dtype: str | torch.dtype = "float16",
        embedding: str = "auto",
        check_weights: bool = True,
        exact_prefill: bool = False,
        cuda_graphs: str = "auto",
        warmup: bool = False,
        step_tokens: int | str | None = None,
        max_waiting: int | None = None,
        prefix_cache: bool = True,
        tensor_parallel: int = 1,
        mmap: bool = True,
        progress: bool = True,
    ) -> Runtime:
        """Load a checkpoint.

        Args:
            path_or_name: ``"demo"``, a Hugging Face directory, Adept's release (directory or .tar), a
                packed checkpoint, or a hub id ``owner/name``, whose missing files are downloaded.
            revision: of a hub id: a branch, a tag or a commit; None for ``main``.
            device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, …
            dtype: of the matrices: ``float32``, ``float16``, ``bfloat16``, or ``auto``: on a GPU as stored
                (float16 for float32), on a CPU float32 if it fits in half the memory, else as stored.
                If the matrices are packed, of the embedding, and ``auto`` is as stored.
            weights: pack the matrices while loading: ``int8``, ``int4`` or ``int4-g32``, on a GPU also
                ``fp8``; None for floats, or for the format of a packed checkpoint.
            weight_layout: of the matrices on a GPU: ``row_major``, ``tiles``, or ``auto``.
            max_seq_len: tokens of a sequence, prompt included; None for the model's context, or what fits.
            max_batch_size: sequences that are generated at once.
            cache_dtype: of keys and values: ``float16``, ``bfloat16`` or ``float32``; or a torch.dtype.
            embedding: with a GPU, its memory: ``device``, ``host`` (pinned), or ``auto``: device if all fits.
            check_weights: refuse weights with a NaN or an infinity; this reads them all once.
            exact_prefill: read prompts with the bits of decode steps, at most 16 tokens at a time.
            cuda_graphs: on a GPU, ``auto`` captures decode steps when they are first needed, or launches them
                operator by operator if that fails; ``required`` raises CaptureError instead; ``off``.
            warmup: load the libraries of the first prompt, and capture steps of ``max_batch_size`` sequences.
            step_tokens: of prompts and decoding sequences in one step; None for whole chunks, or ``auto``.
            max_waiting: requests that may wait for a slot before QueueFullError; None for any number.
            prefix_cache: do not read again what a slot holds of a prompt; no bit of a result changes.
            tensor_parallel: ranks that each have a part of the model, on a GPU or some threads of their own.
                This process is the first; it starts the others, or under torchrun awaits them, and there
                the others do not return. ``close`` ends them.
            mmap: map weight files, which must stay whole. False copies them: CheckpointError if truncated.
            progress: show a progress bar on stderr.

        Raises CheckpointError, ParameterError or InsufficientMemoryError; all are ValueErrors.
        """
        started = time.perf_counter()
        max_batch_size = integer("max_batch_size", max_batch_size, 1)
        cuda_graphs = one_of("cuda_graphs", cuda_graphs, CUDA_GRAPHS)
        mmap, warmup, progress = flag("mmap", mmap), flag("warmup", warmup), flag("progress", progress)
        flags = _flags(check_weights=check_weights, exact_prefill=exact_prefill)
        admission = Admission(step_tokens, max_waiting, prefix_cache)
        count = check_ranks(tensor_parallel)
        checkpoint = _open(path_or_name, optional_text("revision", revision), mmap=mmap, progress=progress)
        if max_seq_len is not None:
            max_seq_len = integer("max_seq_len", max_seq_len, 1, checkpoint.config.max_position_embeddings)
        given = (device, dtype, cache_dtype, weights, weight_layout, embedding, max_seq_len, max_batch_size)
        settings = dict(zip(_SETTINGS, given, strict=True))
        loaded = load_ranks(checkpoint, count, settings, cuda_graphs, progress=progress, **flags)
        placed = loaded.model, checkpoint.tokenizer, loaded.cache, loaded.plan, loaded.placement
        runtime = cls(*placed, 0.0, loaded.cuda_graphs, admission, loaded.team)
        if warmup:
            runtime.warm_up()
        runtime.load_seconds = time.perf_counter() - started
        return runtime

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            "a Runtime can be neither copied nor pickled; "
            "expected Runtime.load in each process, and one Runtime for all threads of it"
        )

    @property
    def max_seq_len(self) -> int:
        return self.engine.runner.cache.max_seq_len

    @property
    def max_batch_size(self) -> int:
        return self.engine.runner.cache.max_batch_size

    def close(self) -> None:
        """End the other ranks, if there are several; further calls then raise RankError."""
        if self._close is not None:
            self._close()

    @property
    def ranks(self) -> int:
        """How many processes have a part of the model."""
        return self.engine.runner.model.ranks.count

    def memory(self) -> MemoryPlan:
        """The memory of weights, cache and workspace, and the longest context that would fit; if there are
        several ranks, of the first one's part."""
        return self._plan

    def stats(self) -> Stats:
        """The activation sparsity of the decode steps so far, of the first rank's neurons."""
        return Stats(*self.engine.runner.model.neuron_counts.tolist())

    def warm_up(self) -> None:
        """Load the libraries of the first prompt and step, and on a GPU capture steps; no text changes."""
        with explaining_out_of_memory(self._plan, during="capturing decode steps"):
            self.engine.warmup()

    def captures(self) -> CaptureReport | None:
        """The CUDA graphs captured so far, and their cost; None if steps are not captured."""
        return self.engine.runner.captures()

    def bytes_read_per_step(self, context_tokens: int) -> int:
        """The bytes that decoding a token reads after ``context_tokens`` others of its sequence.

        With several ranks on a CPU all read them from one memory; on GPUs they are those of the first.
        """
        context_tokens = integer("context_tokens", context_tokens, 0)
        weights = self.engine.runner.model.weights.bytes_per_step(self.tokenizer.vocab_size)
        sharing = self.ranks if self.placement.device.type == "cpu" else 1
        return sharing * (weights + self._plan.cache_bytes_per_token * context_tokens)

    @overload
    def generate(
        self,
        prompts: str,
        params: SamplingParams | None = None,
        *,
        add_bos: bool | None = None,
        **keywords: Any,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompts: SequenceOf[Prompt],
        params: SamplingParams | SequenceOf[SamplingParams] | None = None,
        *,
        add_bos: bool | None = None,
        **keywords: Any,
    ) -> list[Generation]: ...

    def generate(
        self,
        prompts: str | SequenceOf[Prompt],
        params: SamplingParams | SequenceOf[SamplingParams] | None = None,
        *,
        add_bos: bool | None = None,
        **keywords: Any,
    ) -> Generation | list[Generation]:
        """Continue a prompt (→ a Generation) or several (→ a list of them, in order).

        A prompt is text, or in a list also token ids. Each gets the text that it would get alone; there may
        be more prompts than ``max_batch_size``. Ctrl-C ends all of them with the text so far.

        Args:
            params: for all prompts, or one for each; or its fields as keywords.
            add_bos: whether BOS is put before text; None for the checkpoint's setting.

        Raises ParameterError, or GenerationError when the logits hold a NaN.
        """
        single = isinstance(prompts, str)
        batch = [prompts] if isinstance(prompts, str) else entries("prompts", prompts, _PROMPTS)
        handles = self.engine.submit_all(
            self._requests(batch, _settings(params, keywords, len(batch)), add_bos)
        )
        try:
            for handle in handles:
                handle.wait()
        except KeyboardInterrupt:
            self.engine.end([handle.sequence for handle in handles])
        finally:
            for handle in handles:  # of which one may have failed
                handle.cancel()
        generations = [handle.sequence.generation(self.load_seconds) for handle in handles]
        return generations[0] if single else generations

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        add_bos: bool | None = None,
        **keywords: Any,
    ) -> TextStream:
        """Continue a prompt piece by piece; the pieces joined are the text that ``generate`` returns.

        When the stream has ended, ``result`` is the Generation that ``generate`` returns.
        """
        (request,) = self._requests([prompt], _settings(params, keywords, 1), add_bos)
        return TextStream(self.engine, request, self.load_seconds)

    def score(self, texts: str | SequenceOf[Prompt], *, add_bos: bool | None = None) -> list[Score]:
        """The log-probability of every token of each text, given the tokens before it."""
        batch = [texts] if isinstance(texts, str) else entries("texts", texts, _PROMPTS)
        add_bos = optional_flag("add_bos", add_bos)
        if not batch:
            raise ParameterError("texts is empty; expected at least one")
        encoded = [self._encode(text, add_bos) for text in batch]
        for ids in encoded:
            self.engine.check_prompt(ids)
        sequences = [ScoredSequence(ids[:1], [ids[1:]]) for ids in encoded]
        scores = []
        for ids, sequence in zip(encoded, self.engine.score(sequences), strict=True):
            (likelihood,) = sequence.likelihoods()
            scores.append(Score(ids, [None, *likelihood.logprobs] if ids else []))
        return scores

    def score_continuations(
        self, requests: SequenceOf[tuple[SequenceOf[int], SequenceOf[int]]]
    ) -> Iterator[tuple[int, Likelihood]]:
        """The index and the likelihood of each continuation after its context, as they become known.

        A context that several continuations share is read once.

        Args:
            requests: (context, continuation) in token ids; a context has at least one, and both together at
                most one more than ``max_seq_len``, as the last token is never read.
        """
        indices: dict[tuple[int, ...], list[int]] = {}
        for index, (context, _) in enumerate(requests):
            indices.setdefault(tuple(context), []).append(index)
        longest_first = sorted(
            indices.items(),
            key=lambda item: -len(item[0]) - max(len(requests[index][1]) for index in item[1]),
        )
        sequences = [
            ScoredSequence(context, [requests[index][1] for index in own]) for context, own in longest_first
        ]
        for (_, own), sequence in zip(longest_first, self.engine.score(sequences), strict=True):
            yield from zip(own, sequence.likelihoods(), strict=True)

    def _encode(self, prompt: Prompt, add_bos: bool | None) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, add_bos=add_bos)
        return token_ids("prompt", prompt, "text or token ids")

    def _requests(
        self, prompts: SequenceOf[Prompt], params: SequenceOf[SamplingParams], add_bos: bool | None
    ) -> list[Request]:
        add_bos = optional_flag("add_bos", add_bos)
        if not prompts:
            raise ParameterError("prompts is empty; expected at least one prompt")
        return [
            Request(self._encode(prompt, add_bos) or self.tokenizer.encode("", add_bos=True), settings)
            for prompt, settings in zip(prompts, params, strict=True)
        ]


def _flags(**values: object) -> dict[str, bool]:
    return {name: flag(name, value) for name, value in values.items()}


def _open(path_or_name: object, revision: str | None, *, mmap: bool, progress: bool) -> Checkpoint:
    if not isinstance(path_or_name, Checkpoint):
        path = path_or_str("path_or_name", path_or_name, "a str or a Path, or an open Checkpoint")
        return open_checkpoint(path, revision, mmap=mmap, progress=progress)
    if revision is not None:
        raise ParameterError(f"revision is {revision!r}; expected None with an open checkpoint")
    if path_or_name.mmap and not mmap:
        raise ParameterError("mmap is False, and the checkpoint is open with True; expected the same")
    return path_or_name


def _settings(
    params: SamplingParams | SequenceOf[SamplingParams] | None, keywords: dict[str, Any], count: int
) -> list[SamplingParams]:
    """One SamplingParams for each of ``count`` prompts."""
    if params is None:
        known = [field.name for field in fields(SamplingParams)]
        for name in keywords:
            if name not in known:
                raise ParameterError(f"unknown sampling parameter: {name}; expected {', '.join(known)}")
        return [SamplingParams(**keywords)] * count
    if keywords:
        raise ParameterError(f"params and the keyword {next(iter(keywords))} are both given; expected one")
    if isinstance(params, SamplingParams):
        return [params] * count
    expected = "SamplingParams, or a list of one for each prompt"
    each = entries("params", params, expected)
    if len(each) != count:
        raise ParameterError(
            f"params has {len(each)} entries; expected one, or one for each of {count} prompts"
        )
    for entry in each:
        if not isinstance(entry, SamplingParams):
            raise ParameterError(f"params has {short_repr(entry)}; expected {expected}")
    return each
