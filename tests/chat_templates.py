"""Chat templates, of the kinds that checkpoints bring, and conversations to render with them."""

from __future__ import annotations

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INSTRUCTIONS = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\n\n' + message['content'] | trim + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'].strip() + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}
"""
MACROS = """{% macro turn(role, content) -%}
<{{ role }}>{{ content }}</{{ role }}>
{% endmacro %}
{% set ns = namespace(users=0, seen=[]) %}
{% for message in messages %}
  {% if message.role == 'user' %}
    {% set ns.users = ns.users + 1 %}
    {% set ns.seen = ns.seen + [message.content | upper] %}
  {% endif %}
  {% if loop.index0 > 8 %}{% break %}{% endif %}
{{ turn(message.role, message.content | replace('a', 'bb') | trim) }}
{% endfor %}
{% generation %}users: {{ ns.users }} of {{ messages | count }}, {{ ns.seen | join('; ') }}{% endgeneration %}

{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | tojson }}
{{ {'tools': none, 'ß': [1, 2.5, true]} | tojson(indent=2) }} {{ tools is none }}
{{ documents is defined }}
{{ '%s-%03d' % ('x', 7) }} {{ '{} {}'.format('y', 2) }} {{ "a,b".split(",")[1] ~ 3 }}
{{ 2 ** 10 }} {{ [3] * 2 }}
{{ dict(a=1).items() | list }} {{ cycler('p', 'q').next() }}
{{ 'abc' | center(7) }}| {{ 'a\nb' | indent(3) }}
{% if add_generation_prompt %}{{ strftime_now('%Y') | length }}{{ eos_token }}{% endif %}
"""
PARTS = (
    "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "instructions": INSTRUCTIONS,
    "macros": MACROS,
    "parts": PARTS,
}
TURNS = [
    {"role": "user", "content": " What a day? "},
    {"role": "assistant", "content": "Grüße, 你好\n😀"},
    {"role": "user", "content": "And <b>&amp;</b> |ENDOFTEXT| 'now'?"},
]
CONVERSATIONS = [
    TURNS[:1],
    TURNS,
    [{"role": "system", "content": "Be brief."}, *TURNS],
    [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "see"}]}],
]
