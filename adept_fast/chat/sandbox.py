"""jinja's sandbox with limits on loop rounds, calls, filters and the sizes of values.

jinja keeps a template from files, modules and private attributes, but not from using all time and memory.
Here the template's syntax tree is rewritten before it is compiled: each costly node checks the budget first.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from adept_fast.chat import budget as limits
from adept_fast.chat.budget import TemplateLimitError, bounded, budget
from adept_fast.chat.filters import FILTERS, bounded_filter, checked_arguments

_COUNTED_OPERATORS = frozenset(["+", "*", "**", "%"])
_LONGEST_TIME_FORMAT = 100


class RefusedError(TemplateError):
    """The template called ``raise_exception``."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment in which transformers renders chat templates, with limits. Rendering needs a budget."""

    intercepted_binops = _COUNTED_OPERATORS

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlocks, "jinja2.ext.loopcontrols"],
            optimized=False,
            finalize=_written,
        )
        self.filters = {name: bounded_filter(name, function) for name, function in FILTERS.items()}
        self.tests = {name: _counted_test(test) for name, test in JINJA_TESTS.items()}  # type: ignore[arg-type]
        self.globals = {
            "range": self.globals["range"],
            "cycler": Cycler,
            "joiner": Joiner,
            "dict": _bounded_dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        # The functions that the rewritten tree calls.
        self.count_round = _count_round
        self.count_text = _count_text
        self.concatenate = _concatenate
        self.bounded = bounded
        self._hooks = (_count_round, _count_text, _concatenate, bounded)

    def compile_bounded(self, source: str) -> Template:
        """The template, rewritten to check the budget."""
        tree = _Counting().visit(self.parse(source))
        code = self.compile(tree)
        return Template.from_code(self, code, self.globals)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if any(obj is hook for hook in self._hooks):
            return obj(*args)
        budget().step()
        if isinstance(obj, (types.BuiltinMethodType, types.MethodType)):
            args = checked_arguments(obj, args, kwargs)
        current = budget()
        current.enter()
        try:
            return bounded(super().call(context, obj, *args, **kwargs))
        finally:
            current.leave()

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget().step()
        if isinstance(left, str) and operator == "%":
            limits.require_formatted(left, right)
        elif isinstance(left, int) and isinstance(right, int):
            _check_integers(operator, left, right)
        elif operator == "*":
            times, value = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(times, int):
                length = len(value) if isinstance(value, str) else limits.size_of(value)
                limits.require_size(length * max(0, times))
        elif operator == "+":
            limits.require_size(limits.size_of(left) + limits.size_of(right))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def formatted(*args: Any, **kwargs: Any) -> str:
            limits.require_formatted(value.__self__, [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return formatted


class _Counting(NodeTransformer):
    """Rewrites a template to check the budget before loop rounds, text, concatenations and containers."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (jinja looks it up by the class's name)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("count_round")))
        if node.test is not None:
            node.test = nodes.And(_call("count_round"), node.test)
        return node

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:  # noqa: N802
        self.generic_visit(node)
        length = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        return [nodes.ExprStmt(_call("count_text", nodes.Const(length))), node] if length else [node]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("concatenate", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return _call("bounded", self.generic_visit(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return _call("bounded", self.generic_visit(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("bounded", node) if node.ctx == "load" else node  # others are targets of assignments


class _GenerationBlocks(Extension):
    """``{% generation %}`` marks answers for training; here it is a plain block."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """``namespace()`` without private names; its repr has a fixed length."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N805 (self= is a name that may be given)
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            _require_public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not have the attribute {name!r}")


def _call(name: str, *arguments: Any) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)


def _count_round() -> bool:
    budget().step()
    return True


def _count_text(characters: int) -> str:
    budget().step()
    budget().write(characters)
    return ""


def _written(value: Any) -> Any:
    budget().step()
    budget().write(limits.size_of(value))
    return value


def _concatenate(*values: Any) -> str:
    budget().step()
    limits.size_of(values)
    return "".join(map(str, values))


def _counted_test(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    def counted(*args: Any, **kwargs: Any) -> Any:
        budget().step()
        return test(*args, **kwargs)

    return counted


def _check_integers(operator: str, left: int, right: int) -> None:
    bits, other = left.bit_length(), right.bit_length()
    limits.require_integer(max(bits, other))
    if operator == "*":
        limits.require_integer(bits + other)
    elif operator == "**":
        limits.require_integer(bits * max(right, -right))


def _bounded_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)  # call() checks its size


def _raise_exception(message: object) -> None:
    raise RefusedError(str(message)[:1000])


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _LONGEST_TIME_FORMAT or any(character.isdigit() for character in pattern):
        raise TemplateLimitError(
            f"strftime_now has the format {pattern!r:.40}; expected a short one, without digits"
        )
    return datetime.now().strftime(pattern)
