"""TokenLoop: sequences of token ids, continued side by side and a step at a time, with the logits of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adept_fast import GenerationError, ops
from adept_fast.checkpoint import dtype_name
from adept_fast.config import PersimmonConfig
from adept_fast.engine.decode_loop import step_on_device
from adept_fast.engine.decode_state import DecodeState, Place
from adept_fast.engine.graphs import Launching
from adept_fast.engine.speculation import PromptLookup, kept_tokens
from adept_fast.kv_cache import StaticKVCache
from adept_fast.memory.workspace import max_rows
from adept_fast.model import Persimmon
from adept_fast.sampling import Sampler, SamplingParams
from adept_fast.weights import ModelWeights

_LENGTH_STEP = 256  # the cache's positions are a multiple of this many


@dataclass(frozen=True)
class Found:
    """What a step over guesses has found to follow a token, and the logits: float32 [1, vocab]."""

    token_id: int
    chosen: int
    logits: Tensor


class TokenLoop:
    """A model, a cache and a sampler, in which row i of a batch has slot i.

    Who uses it decides, step by step, which rows go on and with which token; ``begin`` and ``advance`` say
    what the runtime would choose next. Steps are launched as those of ``DecodeLoop`` are, on a GPU as graphs,
    but each is read before the next.

    Args:
        rows, length: what the cache is made for. It grows where texts get longer, but has no more rows.
    """

    def __init__(
        self,
        config: PersimmonConfig,
        weights: ModelWeights,
        cache_dtype: torch.dtype,
        *,
        rows: int,
        length: int,
    ) -> None:
        self.rows = rows  # how many ``begin`` takes
        self._config = config
        self._weights = weights
        self._cache_dtype = cache_dtype
        self._lengths: list[int] = []  # of each row, how many tokens it has
        self._lookup: PromptLookup | None = None  # of the only row, where it guesses
        self._most_drafts = 0
        self._ahead: deque[Found] = deque()
        self._next: list[Place] = []  # what the state will go on from by itself
        device, state_rows = weights.device, max_rows(rows)
        # Made in inference mode, tensors could not be written to outside of it.
        with torch.inference_mode(False):
            self._state, self._idle = (
                DecodeState(state_rows, rows, config.vocab_size, device) for _ in range(2)
            )
            captured = Launching.on(device, state_rows, length).captured
            self._sampler = Sampler(rows, config.vocab_size, device, by_host=not captured)
        self._make_room(length)

    @property
    def length(self) -> int:
        """How many tokens a row may have before the cache has to grow."""
        return self._cache.max_seq_len

    @torch.no_grad()
    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        seen: Sequence[Tensor],
        past: Sequence[Tensor] = (),
    ) -> tuple[list[int], Tensor]:
        """Read the prompts, each at least one token; whatever was begun before ends.

        Args:
            seen: of each row, the ids that a repetition penalty counts as seen: int64 [tokens].
            past: of each row, the keys and values of the first tokens of its prompt, which are not read
                again, at least one fewer than the prompt has: [layer, k/v, head, tokens, head_dim].

        Returns the next token of each row, and its logits: float32 [rows, vocab], until the next step. Raises
        GenerationError where logits hold a NaN or an infinity.
        """
        self._begin_lookup(prompts, params)
        self._next = []
        self._state.resume_count()
        self._lengths = [len(prompt) for prompt in prompts]
        device = self._model.device
        for row, settings in enumerate(params):
            self._sampler.start(row, settings, seen[row].to(device))
        logits = self._continue(prompts, past) if past else self._prefill(prompts)
        rows = range(len(prompts))
        last_positions = torch.tensor(self._lengths, device=device, dtype=torch.int64) - 1
        chosen = self._sampler.choose(
            logits, torch.tensor(rows, device=device, dtype=torch.int64), last_positions
        )  # [rows]
        return self._checked(chosen.tolist(), rows), logits

    @torch.no_grad()
    def advance(self, rows: Sequence[int], ids: Sequence[int]) -> tuple[list[int], Tensor]:
        """Give each of ``rows`` its next token; returns and raises what ``begin`` does, for these rows."""
        if self._lookup is not None:
            return self._advance_with_guesses(ids[0])
        self._keep_room(max(self._lengths[row] for row in rows) + 1)
        places = [Place(token_id, row, self._lengths[row]) for row, token_id in zip(rows, ids, strict=True)]
        chosen, logits = self._step(places)
        for row in rows:
            self._lengths[row] += 1
        return self._checked(chosen, rows), logits

    def keys_and_values(self, row: int, tokens: int) -> Tensor:
        """Of a row's first tokens: [layer, k/v, head, tokens, head_dim], a view until the next step."""
        return self._cache.data[:, :, row, :, :tokens]

    def _advance_with_guesses(self, token_id: int) -> tuple[list[int], Tensor]:
        """Of the only row: a step over its token and guesses, or what such a step has found already."""
        assert self._lookup is not None
        self._lookup.push(token_id)
        if not self._ahead or self._ahead[0].token_id != token_id:
            length = self._lengths[0]
            self._keep_room(length + 1)
            guesses = self._lookup.draft(min(self._most_drafts, self.length - length - 1))
            fed = [token_id, *guesses]
            chosen, logits = self._step([Place(fed[at], 0, length + at) for at in range(len(fed))])
            kept = kept_tokens(chosen, guesses)
            self._ahead = deque(Found(fed[at], after, logits[at : at + 1]) for at, after in enumerate(kept))
        found = self._ahead.popleft()
        self._lengths[0] += 1
        return self._checked([found.chosen], [0]), found.logits

    def _begin_lookup(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> None:
        # Rows that go on at their own pace would end at different columns of a batch.
        self._most_drafts = params[0].prompt_lookup if len(prompts) == 1 else 0
        self._lookup = PromptLookup(prompts[0]) if self._most_drafts else None
        self._ahead.clear()

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The logits after each prompt, float32 [rows, vocab]; what one has read is copied to its like."""
        first_rows: dict[tuple[int, ...], int] = {}
        logits: list[Tensor] = []
        for row, prompt in enumerate(prompts):
            like = first_rows.setdefault(tuple(prompt), row)
            if like == row:
                ids = torch.tensor(prompt, device=self._model.device, dtype=torch.int64)  # [tokens]
                logits.append(self._model.prefill(ids, self._cache, row))
            else:
                held = self._cache.data[..., : len(prompt), :]  # [layer, k/v, slot, head, tokens, head_dim]
                held[:, :, row] = held[:, :, like]
                logits.append(logits[like])
        return torch.cat(logits)

    def _continue(self, prompts: Sequence[Sequence[int]], past: Sequence[Tensor]) -> Tensor:
        """The logits after each prompt, float32 [rows, vocab], of which ``past`` was read before."""
        logits = []
        for row, (prompt, held) in enumerate(zip(prompts, past, strict=True)):
            tokens = held.shape[-2]
            self.keys_and_values(row, tokens).copy_(held)
            ids = torch.tensor(
                prompt[tokens:], device=self._model.device, dtype=torch.int64
            )  # [tokens that follow]
            logits.append(self._model.prefill(ids, self._cache, row, tokens))
        return torch.cat(logits)

    def _step(self, places: list[Place]) -> tuple[list[int], Tensor]:
        """What is chosen after each place, and the logits: float32 [places, vocab]."""
        if places != self._next:
            self._state.place(places)
        longest = max(place.position for place in places) + 1
        rows, length = self._steps.shapes.fitting(len(places), longest)
        logits = self._steps.launch(rows, length)[: len(places)]
        numbers = self._state.count_step(rows)
        chosen = [self._state.read(row, numbers[row]) for row in range(len(places))]
        self._next = [
            Place(token_id, place.slot, place.position + 1)
            for token_id, place in zip(chosen, places, strict=True)
        ]
        return chosen, logits

    def _checked(self, chosen: list[int], rows: Sequence[int]) -> list[int]:
        if ops.INVALID in chosen:
            length = self._lengths[rows[chosen.index(ops.INVALID)]]
            raise GenerationError(
                f"the logits after {length} tokens hold a NaN or an infinity: "
                f"weights are damaged, or a cache in {dtype_name(self._cache_dtype)} is too narrow"
            )
        return chosen

    def _keep_room(self, length: int) -> None:
        """Make the cache longer where it has to be, and keep what it holds."""
        held = self._cache.data
        if length > self.length:
            self._make_room(2 * self.length)
            self._cache.data[..., : held.shape[-2], :] = held

    def _make_room(self, length: int) -> None:
        length = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        device = self._weights.device
        launching = Launching.on(device, self._state.max_rows, length)
        with torch.inference_mode(False), torch.no_grad():
            self._model = Persimmon(
                self._config, self._weights, max_seq_len=length, vocab_size=self._config.vocab_size
            )
            self._cache = StaticKVCache(
                self._config,
                max_batch_size=self.rows,
                max_seq_len=length,
                dtype=self._cache_dtype,
                device=device,
            )
        # What was captured has the addresses of the cache before.
        model, cache, sampler = self._model, self._cache, self._sampler
        self._steps = launching.steps(
            lambda rows, length: step_on_device(model, cache, sampler, self._state.rows(rows), length),
            lambda rows, length: step_on_device(model, cache, sampler, self._idle.rows(rows), length),
        )
