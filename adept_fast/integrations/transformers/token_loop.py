"""TokenLoop: decodes a batch of token ids step by step and returns the logits."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adept_fast import GenerationError, ops
from adept_fast.checkpoint import dtype_name
from adept_fast.config import PersimmonConfig
from adept_fast.engine.decode_state import RowInput
from adept_fast.engine.graphs import LaunchPolicy
from adept_fast.engine.model_runner import ModelRunner
from adept_fast.engine.speculation import PromptLookup, kept_tokens
from adept_fast.kv_cache import StaticKVCache
from adept_fast.model import Persimmon, Segment, chunks
from adept_fast.sampling import SamplingParams
from adept_fast.weights import ModelWeights

_LENGTH_STEP = 256  # the length of the cache is a multiple of this


@dataclass(frozen=True)
class CheckedToken:
    """A token of a step with drafts, its logits float32 [1, vocab], and the token chosen from them."""

    token_id: int
    following: int
    logits: Tensor


class TokenLoop:
    """A ModelRunner in which row i of a batch has slot i.

    The caller chooses rows and tokens of each step; ``begin`` and ``advance`` return the next tokens that the
    runtime samples. Each step is read before the next is launched.

    Args:
        rows, length: the size of the cache. Its length grows with the texts, its rows do not.
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
        self.rows = rows  # the maximum of ``begin``
        self._config = config
        self._weights = weights
        self._cache_dtype = cache_dtype
        self._lengths: list[int] = []  # tokens of each row
        self._lookup: PromptLookup | None = None  # of the only row, if it drafts
        self._max_drafts = 0
        self._checked_tokens: deque[CheckedToken] = deque()
        self._next: list[RowInput] = []  # the inputs of the next step in the decode state
        # Tensors of inference mode cannot be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._runner = ModelRunner(*self._model_and_cache(length), config.vocab_size)

    @property
    def length(self) -> int:
        """The maximum tokens of a row before the cache grows."""
        return self._runner.cache.max_seq_len

    @property
    def step_ends(self) -> bool:
        """Whether the next ``advance`` runs the model; else it returns what the last step has sampled too."""
        return not self._checked_tokens

    @torch.no_grad()
    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        seen: Sequence[Tensor],
        past: Sequence[Tensor] = (),
    ) -> tuple[list[int], Tensor]:
        """Start a batch and prefill its prompts, each at least one token.

        Args:
            seen: for each row, the ids that a repetition penalty counts as seen: int64 [tokens].
            past: for each row, the keys and values of the first tokens of its prompt, which are not processed
                again, without the last token: [layer, k/v, head, tokens, head_dim].

        Returns the next token of each row and the logits float32 [rows, vocab], valid until the next step.
        Raises GenerationError if logits hold a NaN or an infinity.
        """
        self._begin_lookup(prompts, params)
        self._next = []
        self._runner.recover()
        self._lengths = [len(prompt) for prompt in prompts]
        for row, settings in enumerate(params):
            self._runner.start(row, settings, seen[row].tolist())
        for row, held in enumerate(past):
            self.keys_and_values(row, held.shape[-2]).copy_(held)
        logits = self._prefill(prompts, [held.shape[-2] for held in past])
        rows = range(len(prompts))
        chosen = self._runner.sample(logits, rows, [length - 1 for length in self._lengths])  # [rows]
        return self._checked(chosen.tolist(), rows), logits

    @torch.no_grad()
    def advance(self, rows: Sequence[int], ids: Sequence[int]) -> tuple[list[int], Tensor]:
        """Append a token to each of ``rows``; returns and raises as ``begin``, for these rows."""
        if self._lookup is not None:
            return self._advance_with_drafts(self._lookup, ids[0])
        self._keep_room(max(self._lengths[row] for row in rows) + 1)
        inputs = [
            RowInput(token_id, row, self._lengths[row]) for row, token_id in zip(rows, ids, strict=True)
        ]
        chosen, logits = self._step(inputs)
        for row in rows:
            self._lengths[row] += 1
        return self._checked(chosen, rows), logits

    def keys_and_values(self, row: int, tokens: int) -> Tensor:
        """A view of a row's first tokens, valid until the next step: [layer, k/v, head, tokens, head_dim]."""
        return self._runner.cache.data[:, :, row, :, :tokens]

    def _advance_with_drafts(self, lookup: PromptLookup, token_id: int) -> tuple[list[int], Tensor]:
        """For a single row: a step with drafts, or a result that an earlier such step already has."""
        lookup.push(token_id)
        if not self._checked_tokens or self._checked_tokens[0].token_id != token_id:
            length = self._lengths[0]
            self._keep_room(length + 1)
            drafts = lookup.draft(min(self._max_drafts, self.length - length - 1))
            tokens = [token_id, *drafts]
            chosen, logits = self._step([RowInput(tokens[at], 0, length + at) for at in range(len(tokens))])
            self._checked_tokens = deque(
                CheckedToken(tokens[at], following, logits[at : at + 1])
                for at, following in enumerate(kept_tokens(chosen, drafts))
            )
        checked = self._checked_tokens.popleft()
        self._lengths[0] += 1
        return self._checked([checked.following], [0]), checked.logits

    def _begin_lookup(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> None:
        # Rows that accept different numbers of drafts would be at different columns of the batch.
        self._max_drafts = params[0].prompt_lookup if len(prompts) == 1 else 0
        self._lookup = PromptLookup(prompts[0]) if self._max_drafts else None
        self._checked_tokens.clear()

    def _prefill(self, prompts: Sequence[Sequence[int]], held: Sequence[int]) -> Tensor:
        """The logits after each prompt, float32 [rows, vocab]; equal prompts are processed once.

        ``held`` has the number of each prompt's tokens in the cache; it is empty if there are none.
        """
        first_rows: dict[tuple[int, ...], int] = {}
        same = [row if held else first_rows.setdefault(tuple(ids), row) for row, ids in enumerate(prompts)]
        starts = held or [0] * len(prompts)
        unread = [
            Segment(row, starts[row], prompt[starts[row] :])
            for row, prompt in enumerate(prompts)
            if same[row] == row
        ]
        last_states: dict[int, Tensor] = {}  # row → [1, hidden]
        model = self._runner.model
        for chunk in chunks(unread, model.chunk_tokens):
            hidden = self._runner.prefill(chunk)  # [tokens, hidden]
            states = hidden.split([len(segment.ids) for segment in chunk])
            last_states |= {segment.slot: own[-1:] for segment, own in zip(chunk, states, strict=True)}
        for row, first in enumerate(same):
            if first != row:
                tokens = len(prompts[row])
                self.keys_and_values(row, tokens).copy_(self.keys_and_values(first, tokens))
        return self._runner.model.logits(torch.cat([last_states[first] for first in same]))

    def _step(self, inputs: list[RowInput]) -> tuple[list[int], Tensor]:
        """The token sampled after each input, and the logits float32 [inputs, vocab]."""
        if inputs != self._next:
            self._runner.place(inputs)
        step = self._runner.launch(len(inputs), max(row.position for row in inputs) + 1)
        chosen = self._runner.read(step, range(len(inputs)))
        self._next = [
            RowInput(token_id, row.slot, row.position + 1)
            for token_id, row in zip(chosen, inputs, strict=True)
        ]
        return chosen, step.logits[: len(inputs)]

    def _checked(self, chosen: list[int], rows: Sequence[int]) -> list[int]:
        if ops.INVALID in chosen:
            length = self._lengths[rows[chosen.index(ops.INVALID)]]
            raise GenerationError(
                f"the logits after {length} tokens hold a NaN or an infinity: "
                f"weights are damaged, or a cache in {dtype_name(self._cache_dtype)} is too narrow"
            )
        return chosen

    def _keep_room(self, length: int) -> None:
        """Grow the cache to at least ``length`` positions, with its contents."""
        if length <= self.length:
            return
        held = self._runner.cache.data
        with torch.inference_mode(False), torch.no_grad():
            model, cache = self._model_and_cache(2 * self.length)
            cache.data[..., : held.shape[-2], :] = held
            policy = LaunchPolicy.on(model.device, self._runner.max_rows, cache.max_seq_len)
            self._runner.use_cache(model, cache, policy)

    def _model_and_cache(self, length: int) -> tuple[Persimmon, StaticKVCache]:
        """A model and a cache for at least ``length`` tokens per row."""
        length = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        vocab_size = self._config.vocab_size
        model = Persimmon(self._config, self._weights, max_seq_len=length, vocab_size=vocab_size)
        cache = StaticKVCache(
            self._config,
            max_batch_size=self.rows,
            max_seq_len=length,
            dtype=self._cache_dtype,
            device=self._weights.device,
        )
        return model, cache
