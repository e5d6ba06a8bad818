"""The reference operators against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from advancing import ROWS, VOCAB, advanced, extreme_state, random_state, read
from closeness import assert_close, product_size
from torch import Tensor

from adept_fast import ops
from adept_fast.ops import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = 1e-5


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["computed in float32", "computed in the matrix's dtype"])
def computed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both rules of ``compute_dtype``: the CPU's, and the GPU's run on the CPU."""
    if request.param != "computed in float32":
        monkeypatch.setattr(reference, "compute_dtype", lambda matrix: matrix.dtype)
    return request.param


def layernorm64(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * gamma.double() + beta.double()


def norm_parameters(size: int) -> tuple[Tensor, Tensor]:
    return 1 + 0.2 * torch.randn(size), 0.1 * torch.randn(size)


def assert_as_exact_as_torch(
    ours: Tensor, exact: Tensor, theirs: Tensor, size: Tensor, dtype: torch.dtype
) -> None:
    """With the same dtypes."""
    assert ours.dtype == torch.float32
    assert_close(ours, exact, theirs, size, inputs=dtype)


def matrix(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(rows, columns) / columns**0.5).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "hidden", "out"), [(1, 64, 192), (3, 80, 240), (17, 4160, 96), (1, 96, 1)]
)
def test_layernorm_qkv(computed: str, dtype: torch.dtype, tokens: int, hidden: int, out: int) -> None:
    x, (gamma, beta) = torch.randn(tokens, hidden) * 3 + 1, norm_parameters(hidden)
    w, b = matrix(out, hidden, dtype), torch.randn(out)
    normed = layernorm64(x, gamma, beta)
    exact = normed @ w.double().T + b.double()
    theirs = F.linear(F.layer_norm(x, (hidden,), gamma, beta, EPS).to(dtype), w, b.to(dtype))
    size = product_size(normed, w) + b.abs()
    assert_as_exact_as_torch(ops.layernorm_qkv(x, gamma, beta, EPS, w, b), exact, theirs, size, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_residual(computed: str, dtype: torch.dtype) -> None:
    x, residual = torch.randn(5, 96), torch.randn(5, 160)
    w, b = matrix(160, 96, dtype), torch.randn(160)
    exact = x.double() @ w.double().T + b.double() + residual.double()
    theirs = F.linear(x.to(dtype), w, b.to(dtype)) + residual.to(dtype)
    size = product_size(x, w) + b.abs() + residual.abs()
    assert_as_exact_as_torch(ops.linear_residual(x, w, b, residual), exact, theirs, size, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "hidden", "units"), [(1, 64, 256), (5, 80, 321), (2, 1040, 4160)])
def test_mlp(computed: str, dtype: torch.dtype, tokens: int, hidden: int, units: int) -> None:
    x, (gamma, beta) = torch.randn(tokens, hidden), norm_parameters(hidden)
    w_up, b_up = matrix(units, hidden, dtype), torch.randn(units)
    w_down_t, b_down = matrix(units, hidden, dtype), torch.randn(hidden)
    normed = layernorm64(x, gamma, beta)
    hidden64 = (normed @ w_up.double().T + b_up.double()).relu().square()
    exact = x.double() + hidden64 @ w_down_t.double() + b_down.double()
    up = F.linear(F.layer_norm(x, (hidden,), gamma, beta, EPS).to(dtype), w_up, b_up.to(dtype))
    theirs = x.to(dtype) + up.relu().square() @ w_down_t + b_down.to(dtype)
    ours = ops.mlp(x, gamma, beta, EPS, w_up, b_up, w_down_t, b_down)
    # A unit is off by its own rounding, and by twice its root times that of the sum it is the square of.
    units = hidden64 + 2 * hidden64.sqrt() * (product_size(normed, w_up) + b_up.abs())
    size = product_size(units, w_down_t.T) + x.abs() + b_down.abs()
    assert_as_exact_as_torch(ours, exact, theirs, size, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pre_activation", [300.0, 1000.0, 20000.0])
def test_relu_squared_does_not_overflow(computed: str, dtype: torch.dtype, pre_activation: float) -> None:
    hidden, units = 64, 128
    gamma, beta = torch.zeros(hidden), torch.ones(hidden)  # every normalised value is 1
    w_up = torch.zeros(units, hidden, dtype=dtype)
    b_up = torch.full((units,), -1.0)
    b_up[:3] = torch.tensor([pre_activation, 1.0, 0.5])
    w_down_t = matrix(units, hidden, dtype)
    x, b_down = torch.randn(2, hidden), torch.zeros(hidden)
    exact = x.double() + b_up[:3].double().square() @ w_down_t[:3].double()
    ours = ops.mlp(x, gamma, beta, EPS, w_up, b_up, w_down_t, b_down)
    assert ours.isfinite().all()
    assert (ours - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max() + 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_lm_head_gives_float32_logits_of_the_rows_it_gets(computed: str, dtype: torch.dtype) -> None:
    x, (gamma, beta) = torch.randn(3, 128), norm_parameters(128)
    w = matrix(1000, 128, dtype)
    normed = layernorm64(x, gamma, beta)
    exact = normed @ w[:777].double().T
    theirs = F.linear(F.layer_norm(x, (128,), gamma, beta, EPS).to(dtype), w[:777])
    size = product_size(normed, w[:777])
    assert_as_exact_as_torch(ops.lm_head(x, gamma, beta, EPS, w[:777]), exact, theirs, size, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_give_no_logits(computed: str, dtype: torch.dtype) -> None:
    logits = reference.lm_head(torch.randn(3, 128), *norm_parameters(128), EPS, matrix(0, 128, dtype))
    assert (logits.shape, logits.dtype) == ((3, 0), torch.float32)


@pytest.mark.parametrize("qk_layernorm", [True, False])
@pytest.mark.parametrize(
    ("heads", "head_dim", "rotary_dim"), [(1, 64, 16), (3, 80, 40), (2, 96, 96), (4, 128, 2)]
)
def test_rotary_append(qk_layernorm: bool, heads: int, head_dim: int, rotary_dim: int) -> None:
    slots, positions = torch.tensor([2, 0, 2, 1]), torch.tensor([0, 5, 8, 511])
    qkv = torch.randn(4, 3 * heads * head_dim)
    cos, sin = ops.rotary_table(rotary_dim, 25000.0, 512, torch.device("cpu"))
    norms = (*norm_parameters(head_dim), *norm_parameters(head_dim)) if qk_layernorm else (None,) * 4
    cache = torch.full((2, 3, heads, 512, head_dim), -7.0)
    q = ops.rotary_append(qkv, *norms, EPS, cos, sin, slots, positions, cache)

    def rotated(x: Tensor, gamma: Tensor | None, beta: Tensor | None, position: int) -> Tensor:
        """As complex numbers: pair i of a head turns by position · θ^(−2i / rotary_dim)."""
        x = x.double() if gamma is None or beta is None else layernorm64(x, gamma, beta)
        half = rotary_dim // 2
        pairs = torch.complex(x[..., :half], x[..., half:rotary_dim])
        angles = position * 25000.0 ** (-torch.arange(half).double() * 2 / rotary_dim)
        pairs = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([pairs.real, pairs.imag, x[..., rotary_dim:]], -1)

    written = torch.zeros_like(cache, dtype=torch.bool)
    for token, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        parts = qkv[token].view(heads, 3, head_dim)
        torch.testing.assert_close(
            q[token].double(), rotated(parts[:, 0], *norms[:2], position), atol=2e-4, rtol=0
        )
        stored = cache[:, slot, :, position].double()
        torch.testing.assert_close(stored[0], rotated(parts[:, 1], *norms[2:], position), atol=2e-4, rtol=0)
        assert torch.equal(stored[1], parts[:, 2].double())
        written[:, slot, :, position] = True
    assert (cache[~written] == -7).all()


@pytest.mark.parametrize("cache_dtype", DTYPES)
@pytest.mark.parametrize(
    "absent", [[], [0], [1, 3], [3], [0, 1, 2], [0, 1, 2, 3]], ids=lambda absent: f"without {absent}"
)
def test_an_absent_token_is_not_written(absent: list[int], cache_dtype: torch.dtype) -> None:
    """Not in the last slot, not in the first, nor where another token writes."""
    slots, positions = torch.tensor([2, 0, 1, 0]), torch.tensor([5, 0, 3, 4])
    present = [token for token in range(4) if token not in absent]
    slots[absent], positions[absent] = -1, 2**40
    qkv, norms = torch.randn(4, 3 * 2 * 16), (*norm_parameters(16), *norm_parameters(16))
    tables = ops.rotary_table(8, 25000.0, 6, torch.device("cpu"))
    cache = torch.randn(2, 3, 2, 6, 16).to(cache_dtype)
    expected = cache.clone()
    for token in present:  # alone, without what leaves tokens out
        one = slice(token, token + 1)
        at = slots[one], positions[one]
        reference.rotary_append(qkv[one], *norms, EPS, *tables, *at, expected)
    q = reference.rotary_append(qkv, *norms, EPS, *tables, slots, positions, cache)
    assert torch.equal(cache, expected)
    assert not q[absent].any()
    assert q[present].all()


def attention64(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One query [heads, head_dim] over k and v of [heads, length, head_dim]: [heads · head_dim]."""
    scores = torch.einsum("hd,hld->hl", q.double(), k.double()) * scale
    return torch.einsum("hl,hld->hd", scores.softmax(-1), v.double()).flatten()


@pytest.mark.parametrize("poison", [0.0, 1e4, float("nan"), float("inf")])
@pytest.mark.parametrize("cache_dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_decode_attention(head_dim: int, cache_dtype: torch.dtype, poison: float) -> None:
    lengths = torch.tensor([1, 31, 32, 33, 64])
    slots = torch.tensor([4, 0, 3, 1, 2])
    cache = torch.randn(2, 5, 3, 64, head_dim).to(cache_dtype)
    for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
        cache[:, slot, :, length:] = poison
    q = torch.randn(5, 3, head_dim)
    ours = ops.decode_attention(q, cache, slots, lengths, 64, head_dim**-0.5)
    for token, (slot, length) in enumerate(zip(slots.tolist(), lengths.tolist(), strict=True)):
        k, v = cache[:, slot, :, :length]
        exact = attention64(q[token], k, v, head_dim**-0.5)
        torch.testing.assert_close(ours[token].double(), exact, atol=2e-6, rtol=2e-5)


def test_attention_of_an_absent_token_is_0() -> None:
    slots, lengths = torch.tensor([-1, 1, -1]), torch.tensor([8, 5, 2**40])
    cache, q = torch.randn(2, 2, 3, 8, 16), torch.randn(3, 3, 16)
    cache[:, 0] = cache[:, 1, :, 5:] = float("nan")
    found = reference.decode_attention(q, cache, slots, lengths, 8, 0.25)
    alone = reference.decode_attention(q[1:2], cache, slots[1:2], lengths[1:2], 8, 0.25)
    assert torch.equal(found[1:2], alone)
    assert not found[::2].any()


@pytest.mark.parametrize("poison", [1e4, float("nan")])
@pytest.mark.parametrize(("start", "tokens"), [(0, 1), (0, 33), (1, 1), (31, 17), (40, 24)])
def test_prefill_attention(start: int, tokens: int, poison: float) -> None:
    heads, head_dim, end = 3, 80, start + tokens
    cache_slot = torch.randn(2, heads, 64, head_dim).half()
    cache_slot[:, :, end:] = poison
    q = torch.randn(tokens, heads, head_dim)
    ours = ops.prefill_attention(q, cache_slot, start, head_dim**-0.5)
    for token in range(tokens):
        k, v = cache_slot[:, :, : start + token + 1]
        exact = attention64(q[token], k, v, head_dim**-0.5)
        torch.testing.assert_close(ours[token].double(), exact, atol=2e-6, rtol=2e-5)


def test_advance_is_the_plain_loop() -> None:
    for seed in range(200):
        state = random_state(ROWS[seed % len(ROWS)], depth=1 + seed % 5, seed=seed)
        expected = advanced(state)
        reference.update_decode_state(**state)
        for name, tensor in state.items():
            assert torch.equal(tensor, expected[name]), (name, seed)


def test_advance_takes_any_integers() -> None:
    for seed in range(50):
        state = extreme_state(33, depth=1 + seed % 5, seed=seed)
        expected = advanced(state)
        reference.update_decode_state(**state)
        for name, tensor in state.items():
            assert torch.equal(tensor, expected[name]), (name, seed)


@pytest.mark.parametrize("present", [[], [2], [0, 3]], ids=lambda present: f"with {present}")
def test_what_does_not_exist_is_absent(present: list[int]) -> None:
    """A slot or a position: nothing is written for it, not in what Python would count from the end."""
    slots = torch.tensor([3, 1, -2, 2, 2**63 - 1, 0, -(2**63), 1])
    positions = torch.tensor([0, -1, 0, 6, 1, -(2**63), 2, 2**63 - 1])
    slots[present] = torch.tensor([0, 1, 2, 0])[present]
    positions[present] = torch.tensor([5, 0, 3, 4])[present]
    qkv, norms = torch.randn(8, 3 * 2 * 16), (*norm_parameters(16), *norm_parameters(16))
    tables = ops.rotary_table(8, 25000.0, 7, torch.device("cpu"))
    cache = torch.randn(2, 3, 2, 6, 16)
    expected = cache.clone()
    for token in present:
        one = slice(token, token + 1)
        reference.rotary_append(qkv[one], *norms, EPS, *tables, slots[one], positions[one], expected)
    q = reference.rotary_append(qkv, *norms, EPS, *tables, slots, positions, cache)
    assert torch.equal(cache, expected)
    assert [token for token in range(8) if q[token].any()] == present


def test_attention_to_what_does_not_exist_is_0() -> None:
    slots = torch.tensor([3, 1, 2**63 - 1, -(2**63), 1, 2])
    lengths = torch.tensor([4, -3, 4, 4, 2**63 - 1, 6])
    cache, q = torch.randn(2, 3, 2, 8, 16), torch.randn(6, 2, 16)
    found = reference.decode_attention(q, cache, slots, lengths, 6, 0.25)
    assert not found[:4].any()
    exact = reference.decode_attention(q[4:], cache, slots[4:], torch.tensor([6, 6]), 6, 0.25)
    assert torch.equal(found[4:], exact)


@pytest.mark.parametrize("longest", [-1, 9, 2**63 - 1, -(2**63)])
def test_more_positions_than_a_slot_has(longest: int) -> None:
    at = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"longest is {longest}; expected 0 to 8"):
        reference.decode_attention(torch.randn(1, 2, 16), torch.randn(2, 3, 2, 8, 16), at, at, longest, 0.25)


@pytest.mark.parametrize("start", [-1, 6, 2**63 - 1, -(2**63)])
def test_a_prompt_that_its_slot_does_not_hold(start: int) -> None:
    with pytest.raises(ValueError, match=f"start is {start} of 3 tokens; expected 0 to 5"):
        ops.prefill_attention(torch.randn(3, 2, 16), torch.randn(2, 2, 8, 16), start, 0.25)


def test_a_text_is_read_from_the_ring_behind_the_steps() -> None:
    """Three rows: one ends with an id, one at its limit, one was never there. The ring goes round twice."""
    state = random_state(3, depth=4, seed=0)
    for name, values in {"ids": [1, 2, 3], "slots": [1, 3, -1], "positions": [10, 20, 30]}.items():
        state[name][:] = torch.tensor(values)
    state["limits"][:] = torch.tensor([99, 24, 99])
    state["counts"][:] = 2**32 - 3
    state["ends"][:] = False
    state["ends"][1, 6] = state["ends"][3, 5] = True
    chosen = [[5, 6, 2], [5, 0, 2], [6, 1, 2], [4, 2, 2], [4, 3, 2], [4, 3, 2], [4, 3, 2], [4, 3, 2]]
    told = []
    for step in chosen:
        state["chosen"][:] = torch.tensor(step)
        reference.update_decode_state(**state)
        count = int(state["counts"][0])
        words = [read(word) for word in state["token_ring"][:, count % 4].tolist()]
        assert {number for number, _ in words} == {count % 2**32}
        told.append([id_ for _, id_ in words])
    assert [row[0] for row in told] == [5, 5, 6, -2, -2, -2, -2, -2]
    assert [row[1] for row in told] == [6, 0, 1, 2, -2, -2, -2, -2]
    assert [row[2] for row in told] == [-2] * 8
    assert state["slots"].tolist() == [-1, -1, -1]
    assert state["ids"].tolist() == [6, 2, 3]
    assert state["positions"].tolist() == [13, 24, 30]


@pytest.mark.parametrize("chosen", [-1, VOCAB, 2**40])
def test_an_id_that_is_none_ends_a_text(chosen: int) -> None:
    state = random_state(1, depth=2, seed=3)
    state["slots"][:], state["limits"][:], state["chosen"][:] = 2, 99, chosen
    reference.update_decode_state(**state)
    assert state["slots"].tolist() == [-1]
    assert state["ids"].tolist() == [max(chosen, 0)]


def test_no_operator_of_a_step_looks_at_values() -> None:
    """On tensors without values they would fail: what is captured into a graph may not ask for any."""
    tables = ops.rotary_table(8, 25000.0, 6, torch.device("cpu"))
    slots, positions = torch.tensor([2, -1]), torch.tensor([5, 9])
    cache, qkv, norms = torch.randn(2, 3, 2, 6, 16), torch.randn(2, 3 * 2 * 16), norm_parameters(16)
    state = random_state(2, depth=4, seed=0)

    def bare(tensor: Tensor) -> Tensor:
        return tensor.to("meta")  # shape and dtype alone

    at = bare(slots), bare(positions)
    appended = [bare(tensor) for tensor in (*norms, *norms)], [bare(table) for table in tables]
    q = reference.rotary_append(bare(qkv), *appended[0], EPS, *appended[1], *at, bare(cache))
    attended = reference.decode_attention(q, bare(cache), at[0], at[1] + 1, 6, 0.25)
    reference.update_decode_state(**{name: bare(tensor) for name, tensor in state.items()})
    assert attended.shape == (2, 32)
