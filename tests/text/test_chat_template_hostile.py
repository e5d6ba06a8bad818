"""Chat templates are bounded whatever they try, and reach nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_templates import CHATML, TURNS

from adept_fast.chat.chat_template import MAX_SOURCE, ChatTemplate
from adept_fast.chat.format import ChatError


def grown(start: str, step: str) -> str:
    """A value that becomes what ``step`` makes of it, 99 times."""
    loop = f"{{% for i in range(99) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
    return f"{{% set ns = namespace(x={start}) %}}{loop}{{{{ ns.x }}}}"


def doubling_macros() -> str:
    """Forty macros, each of which calls the one before twice."""
    macros = ["{% macro m0() %}x{% endmacro %}"]
    for at in range(1, 40):
        call = f"{{{{ m{at - 1}() }}}}"
        macros.append(f"{{% macro m{at}() %}}{call}{call}{{% endmacro %}}")
    return "".join(macros) + "{{ m39() }}"


HOSTILE = {
    "long range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for i in [1] * 999 %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "repeated text": "{{ 'a' * 10**9 }}",
    "repeated list": "{{ [1, 2, 3] * 10**8 }}",
    "repetition from the left": "{{ 10**9 * 'a' }}",
    "large power": "{{ 10 ** (10 ** 8) }}",
    "large product": grown("9", "ns.x * ns.x"),
    "recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macros of macros": doubling_macros(),
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "doubled by ~": grown("'a'", "ns.x ~ ns.x"),
    "doubled by +": grown("'a'", "ns.x + ns.x"),
    "doubled list": grown("1", "[ns.x, ns.x]"),
    "doubled tuple": grown("1", "(ns.x, ns.x)"),
    "doubled object": grown("1", "{1: ns.x, 2: ns.x}"),
    "doubled dict": grown("1", "dict(a=ns.x, b=ns.x)"),
    "doubled replace": grown("'a'", "ns.x.replace('a', 'aa')"),
    "wide center": "{{ 'a' | center(10**9) }}",
    "wide center by method": "{{ 'a'.center(10**9) }}",
    "wide ljust": "{{ 'a'.ljust(10**9) }}",
    "wide zfill": "{{ 'a'.zfill(10**9) }}",
    "wide %": "{{ '%1000000000d' % 1 }}",
    "wide % from arguments": "{{ '%*d' % (10**9, 1) }}",
    "wide format": "{{ '{:1000000000}'.format(1) }}",
    "wide format from arguments": "{{ '{:{}}'.format(1, 10**9) }}",
    "wide format filter": "{{ '%1000000000d' | format(1) }}",
    "many fields": "{{ ('%(a)s' * 9999) % {'a': 'a' * 99999} }}",
    "replace filter": "{{ ('a' * 999999) | replace('a', 'b' * 999999) }}",
    "replace nothing": "{{ ('a' * 999999).replace('', 'b' * 999) }}",
    "join": "{{ ('a' * 999999).join(range(99999)) }}",
    "join filter": "{{ range(99999) | join('a' * 999999) }}",
    "join of an iterator": "{{ ''.join([('a' * 99999), 1] | map('string') | list * 999) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "indent": "{{ 'a\nb' | indent(10**9) }}",
    "indent by text": "{{ ('\n' * 9999) | indent('x' * 99999, true, true) }}",
    "tojson": "{{ [1] | tojson(indent=10**9) }}",
    "tojson by text": "{{ [1] | tojson(indent='x' * 99999) }}",
    "quadratic": "{{ range(99999) | select('in', range(99999) | list) | list }}",
    "sum of lists": "{{ [[1]] * 9999 | sum(start=[]) }}",
    "buffered": "{% set x %}{% for i in range(99999) %}" + "y" * 9999 + "{% endfor %}{% endset %}",
    "output": "{% for i in range(9999) %}" + "y" * 9999 + "{% endfor %}",
    "wide time": "{{ strftime_now('%1000000000d') }}",
    "wide bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "filler text": "{{ lipsum(n=10**9) }}",
    "deep parentheses": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "long sum": "{{" + "1+" * 20000 + "1}}",
    "deep loops": "{% for a in b %}" * 200 + "{% endfor %}" * 200,
    "long template": " " * (MAX_SOURCE + 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_time_and_memory_are_bounded(name: str) -> None:
    with pytest.raises(
        ChatError, match="the template in here (cannot be rendered|is no jinja|has 65537)"
    ) as caught:
        ChatTemplate(HOSTILE[name], "here").text(TURNS)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ messages[0]['__class__'] }}{{ ''['__class__'] }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ ('%s' | attr('format'))(1) }}",
        "{{ messages | map(attribute='__class__') | list | first }}",
        "{{ range.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% include '/etc/passwd' %}",
        "{% extends '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(_x=1) }}",
        "{{ open('/etc/passwd') }}",
        "{{ 'a'.encode() }}",
        "{{ 'a'.format_map({}) }}{{ 'a'.translate({97: 'b' * 99}) }}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content }}",
        "{% if",
        "{% nothing %}",
        "{{ 'a' | nothing }}",
    ],
)
def test_what_a_template_may_not_do(source: str) -> None:
    before = json.dumps(TURNS)
    # What may not be read is jinja's undefined value, of which nothing is written.
    assert rendered_or_refused(source) == ""
    assert json.dumps(TURNS) == before


def rendered_or_refused(source: str) -> str:
    try:
        return ChatTemplate(source, "here").text(TURNS)
    except ChatError:
        return ""


def test_a_rendering_leaves_nothing_behind_for_the_next() -> None:
    template = ChatTemplate("{% for i in range(20000) %}{% endfor %}{{ messages | length }}", "here")
    assert [template.text(TURNS) for _ in range(4)] == ["3"] * 4


def test_messages_of_a_cycle_are_refused() -> None:
    content: list[Any] = []
    content.append(content)
    with pytest.raises(ChatError, match="at most 32 deep"):
        ChatTemplate(CHATML, "here").text([{"role": "user", "content": content}])
