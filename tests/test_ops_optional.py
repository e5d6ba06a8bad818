"""Optional packages: what is used, what is refused and why, with modules that stand in for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adept_fast.ops import optional, reference

CPU = torch.device("cpu")


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, causal: bool) -> Tensor:
    """As flash-attn: [batch, tokens, heads, head_dim], the last query at the last key."""
    assert causal
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=softmax_scale)
    return attended.transpose(1, 2)


def fused_layer_norm_affine(
    x: Tensor, weight: Tensor, bias: Tensor, normalized_shape: tuple[int, ...], eps: float
) -> Tensor:
    return F.layer_norm(x, normalized_shape, weight, bias, eps)


def module(name: str, **contents: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(contents)
    return made


def flash(function: Any = flash_attn_func) -> dict[str, ModuleType]:
    return {"flash_attn": module("flash_attn", __version__="2.8.3", flash_attn_func=function)}


def apex(function: Any = fused_layer_norm_affine) -> dict[str, ModuleType]:
    """NVIDIA's."""
    return {
        "apex": module("apex", __version__="0.1"),
        "apex.normalization": module("apex.normalization", FusedLayerNorm=object),
        "apex.normalization.fused_layer_norm": module("fused", fused_layer_norm_affine=function),
        "fused_layer_norm_cuda": module("fused_layer_norm_cuda"),
    }


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU that passes for one, and nothing installed."""
    monkeypatch.delenv("ADEPT_FAST_OPTIONAL", raising=False)
    monkeypatch.setattr(optional, "_capability", lambda device: (8, 0))

    def version(distribution: str) -> str:
        raise optional.importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(optional.importlib.metadata, "version", version)
    monkeypatch.setattr(optional.importlib.util, "find_spec", lambda name: None)
    for name in list(sys.modules):
        if name.split(".")[0] in ("flash_attn", "apex", "fused_layer_norm_cuda"):
            monkeypatch.delitem(sys.modules, name)
    optional.forget()
    yield
    optional.forget()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(modules: dict[str, ModuleType], allowed: str | None = "flash-attn") -> None:
        for name, made in modules.items():
            monkeypatch.setitem(sys.modules, name, made)
        if allowed is not None:
            monkeypatch.setenv("ADEPT_FAST_OPTIONAL", allowed)

    return install


def flash_choice(dtype: torch.dtype = torch.float16, head_dim: int = 64) -> optional.Choice:
    return optional.flash_attention(CPU, dtype, head_dim)


class TestFlashAttention:
    def test_it_is_used_where_it_is_found(self, install: Any) -> None:
        install(flash())
        choice = flash_choice()
        assert choice.used
        assert str(choice).startswith("2.8.3, used: its error is ")
        q, cache = torch.randn(7, 3, 64), torch.randn(2, 2, 3, 30, 64).half()
        cache[:, :, :, 12:] = float("nan")
        assert optional.refuses_cache(q, cache) is None
        found = optional.prefill_attention(q, cache, 1, 5, 0.125)
        assert (found.dtype, found.shape) == (torch.float32, (7, 192))
        expected = reference.prefill_attention(q, cache, 1, 5, 0.125)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)

    def test_nothing_where_it_is_not_found(self) -> None:
        refusal = optional.refuses_cache(torch.zeros(1, 1, 64), torch.zeros(2, 1, 1, 4, 64).half())
        assert refusal == "flash-attn not found: pip install flash-attn"
        assert str(flash_choice()) == "not found: pip install flash-attn"

    @pytest.mark.parametrize("start", [-1, 6, 100])
    def test_positions_that_the_cache_does_not_have(self, install: Any, start: int) -> None:
        install(flash())
        q, cache = torch.randn(3, 2, 16), torch.randn(2, 1, 2, 8, 16).half()
        optional.prefill_attention(q, cache, 0, 5, 0.25)
        with pytest.raises(ValueError, match=f"start is {start} of 3 tokens; expected 0 to 5"):
            optional.prefill_attention(q, cache, 0, start, 0.25)

    def test_it_is_asked_once(self, install: Any) -> None:
        calls = 0

        def counted(*arguments: Any, **keywords: Any) -> Tensor:
            nonlocal calls
            calls += 1
            return flash_attn_func(*arguments, **keywords)

        install(flash(counted))
        for _ in range(3):
            flash_choice()
        assert calls == 2  # at the start of a text, and further on

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            (lambda q, k, v, softmax_scale, causal: flash_attn_func(q, k, v, 1.0, True), "its error is"),
            (lambda q, k, v, softmax_scale, causal: q * float("nan"), "its error is nan"),
            (lambda q, k, v, softmax_scale, causal: q[:, :1], "it failed: RuntimeError"),
            (lambda q, k, v: q, "it failed: TypeError: "),
            (None, "it failed: TypeError: "),
        ],
    )
    def test_a_wrong_one_is_not_used(self, install: Any, wrong: Any, says: str) -> None:
        install(flash(wrong))
        choice = flash_choice()
        assert not choice.used
        assert choice.function is None
        assert str(choice).startswith("2.8.3, not used: ")
        assert says in choice.reason
        assert "\n" not in choice.reason

    def test_one_that_aligns_the_first_query_is_not_used(self, install: Any) -> None:
        """As flash-attn did before 2.1."""

        def top_left(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, causal: bool) -> Tensor:
            q, k, v = (one.transpose(1, 2) for one in (q, k, v))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale)
            return attended.transpose(1, 2)

        install(flash(top_left))
        assert "its error is" in flash_choice().reason
        assert not flash_choice().used

    def test_one_without_the_function(self, install: Any) -> None:
        install({"flash_attn": module("flash_attn")})
        assert str(flash_choice()).startswith("unknown version, not used: it failed: AttributeError")

    @pytest.mark.parametrize(
        ("dtype", "head_dim", "says"),
        [
            (torch.float32, 64, "float16 or bfloat16"),
            (torch.float16, 60, "multiples of 8"),
            (torch.float16, 264, "multiples of 8"),
        ],
    )
    def test_what_it_cannot_attend_to(
        self, install: Any, dtype: torch.dtype, head_dim: int, says: str
    ) -> None:
        install(flash())
        assert says in flash_choice(dtype, head_dim).reason
        assert not flash_choice(dtype, head_dim).used
        assert flash_choice(torch.bfloat16, 256).used

    @pytest.mark.parametrize(("capability", "says"), [((7, 5), "has 7.5"), (None, "for GPUs")])
    def test_devices_without_it(
        self, install: Any, monkeypatch: pytest.MonkeyPatch, capability: Any, says: str
    ) -> None:
        install(flash())
        monkeypatch.setattr(optional, "_capability", lambda device: capability)
        assert says in flash_choice().reason
        assert not flash_choice().used

    def test_it_is_not_used_unasked(self, install: Any) -> None:
        install(flash(), None)
        assert str(flash_choice()) == "2.8.3, not used: ADEPT_FAST_OPTIONAL would have to name it"


class TestApex:
    def test_it_is_used_where_it_is_named(self, install: Any) -> None:
        calls = []

        def normalize(*arguments: Any) -> Tensor:
            calls.append(arguments)
            return fused_layer_norm_affine(*arguments)

        install(apex(normalize), "apex")
        assert optional.apex_layer_norm(CPU).used
        x, gamma, beta = torch.randn(3, 8), torch.randn(8), torch.randn(8)
        before = len(calls)
        found = optional.layer_norm(x, gamma, beta, 1e-5)
        assert len(calls) == before + 1
        assert torch.equal(found, F.layer_norm(x, (8,), gamma, beta, 1e-5))

    def test_it_is_not_used_unasked(self, install: Any) -> None:
        install(apex(), None)
        choice = optional.apex_layer_norm(CPU)
        assert str(choice) == "0.1, not used: ADEPT_FAST_OPTIONAL would have to name it"

    def test_pypis_is_another(self, install: Any) -> None:
        install({"apex": module("apex", __version__="0.9.10.dev0")}, "apex")
        choice = optional.apex_layer_norm(CPU)
        assert not choice.used
        assert "this is not NVIDIA's apex: it has no apex.normalization.FusedLayerNorm" in choice.reason

    def test_one_that_was_not_compiled(self, install: Any) -> None:
        modules = apex()
        del modules["fused_layer_norm_cuda"]
        install(modules, "apex")
        choice = optional.apex_layer_norm(CPU)
        assert not choice.used
        assert "No module named 'fused_layer_norm_cuda'" in choice.reason

    def test_a_wrong_one(self, install: Any) -> None:
        install(apex(lambda x, weight, bias, shape, eps: F.layer_norm(x, shape, weight, None, eps)), "apex")
        assert not optional.apex_layer_norm(CPU).used


class TestWhatIsAllowed:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            (None, set()),
            ("none", set()),
            ("", set()),
            ("apex", {"apex"}),
            (" flash-attn, apex ", {"flash-attn", "apex"}),
        ],
    )
    def test_names(self, monkeypatch: pytest.MonkeyPatch, text: str | None, names: set[str]) -> None:
        if text is not None:
            monkeypatch.setenv("ADEPT_FAST_OPTIONAL", text)
        assert optional.allowed() == names

    def test_names_that_there_are_not(self, install: Any) -> None:
        install(flash(), "flash-attn,xformers")
        with pytest.raises(
            optional.OptionalPackageError,
            match="names 'xformers'; expected flash-attn, apex with commas between, or none",
        ):
            flash_choice()

    def test_none(self, install: Any) -> None:
        install(flash(), "none")
        assert str(flash_choice()) == "2.8.3, not used: ADEPT_FAST_OPTIONAL does not name it"

    def test_all_are_listed(self, install: Any) -> None:
        install(flash())
        listed = {name: str(choice) for name, choice in optional.choices(CPU, torch.float16, 64).items()}
        assert set(listed) == set(optional.NAMES)
        assert listed["flash-attn"].startswith("2.8.3, used")
        assert listed["apex"].startswith("not found: https://github.com/NVIDIA/apex")
