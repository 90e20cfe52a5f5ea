#!/usr/bin/env python3
"""Writes tests/reference/chat/cases.json: templates x conversations, rendered by Transformers' own chat template environment."""
import datetime
import itertools
import json
import pathlib

from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

import chat_templates

NOW = 1764590400  # noon of 1 December 2025: the same day in most of the world


class fixed_datetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, tz)


chat_template_utils.datetime = fixed_datetime

TEMPLATES = chat_templates.TEMPLATES | {
    "smollm2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "chatml": "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\n{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n",
    "llama3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "tools": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' ~ tool_call.name ~ '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "generation": "{%- for m in messages -%}\n{%- if m.role == 'assistant' -%}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{%- else -%}[{{ m.role | upper }}] {{ m.content }}\n{% endif %}{%- endfor -%}",
    "macros": "{% macro part(role, text='none', n=1) -%}\n<{{ role }} n={{ n }}>{{ text | default('?', true) }}</{{ role }}>\n{%- endmacro %}\n{% for m in messages %}{{ part(m.role, m.content, n=loop.index) }}{{ ',' if not loop.last }}{% else %}empty{% endfor %}\n{{ part('end') }}{% macro box() %}[{{ caller('y') }}]{% endmacro %}{% call(x) box() %}{{ x }}{{ messages|length }}{% endcall %}",
}

CONVERSATIONS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "What is 1 + 2? Give a short answer."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  padded \n"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
    [{"role": "system", "content": "S\n\n"}, {"role": "user", "content": "\u4f60\u597d \U0001f600 e\u0301\u00a0"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nanswer"}, {"role": "user", "content": "more {{ x }} {% y %}"}],
    [{"role": "user", "content": "u"}, {"role": "assistant", "content": "<think>one</think>two"}, {"role": "assistant", "content": "x", "reasoning": "because"}],
    [{"role": "user", "content": "weather?"}, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "get", "arguments": {"city": "K\u00f6ln", "days": 3, "deep": [1.5, True, None, {"a": "<b>&'"}]}}}]}, {"role": "tool", "content": "sunny"}, {"role": "tool", "content": "warm"}],
    [],
    [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "\r\n\ttabs\x00"}, {"role": "user", "content": "<|im_end|>"}],
]
TOOLS = [{"type": "function", "function": {"name": "get", "description": "Gets \"it\"\n\u2028\u007f", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
CONVERSATIONS += [
    [{"role": "system", "content": "Answer in French. /no_think"}, {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "\nBonjour\n"}, {"role": "user", "content": "Bye"}],
    [{"role": "user", "content": "weather?"}, {"role": "assistant", "tool_calls": [{"id": "abcdefghi", "type": "function", "function": {"name": "get", "arguments": {"city": "K\u00f6ln"}}}]},
     {"role": "tool", "tool_call_id": "abcdefghi", "name": "get", "content": "{\"sky\": \"blue\"}"}, {"role": "assistant", "content": "It is blue."}, {"role": "user", "content": "Thanks"}],
    [{"role": "system", "content": [{"type": "text", "text": "Parts."}]}, {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " look "}]}],
    [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}],
    [{"role": "system", "content": "Only this."}],
    [{"role": "critic", "content": "unknown role"}, {"role": "assistant", "content": None}],
    [{"role": "system", "content": "/system_override plain"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\na\n</think>\nb"}, {"role": "user", "content": "r"}, {"role": "assistant", "content": "s"}],
]
DOCUMENTS = [{"title": "first paper", "text": "line one\nline\ttwo"}, {"text": ""}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

# One expression or block each: filters, tests, methods, operators, scopes and whitespace.
SNIPPETS = r"""
{{ 1 + 2 * 3 - 4 / 2 }}|{{ 7 // 2 }}|{{ -7 // 2 }}|{{ -7 % 3 }}|{{ 7.5 % -2 }}|{{ 2 ** 10 }}|{{ 2 ** -1 }}|{{ -2 ** 2 }}|{{ 1e20 }}|{{ 1.0 }}|{{ 1e16 }}|{{ 123456.789e3 }}|{{ 0.1 + 0.2 }}|{{ 1e-5 }}|{{ 1_000 }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1, 'x', "it's", none] ~ {'k': (1,), 'z': "\n\t\\"} ~ missing }}
{{ [1, 2, 3][-1] }}{{ 'abc'[1] }}{{ 'abcdef'[::-1] }}{{ 'abcdef'[1:4] }}{{ [1,2,3,4][::2] }}{{ [1,2,3,4][-2:] }}{{ (1,2,3)[:2] }}{{ 'h\u00e9llo'[1:3] }}{{ [1,2][5] }}{{ 'abc'[10:] }}{{ [1,2,3][2:0:-1] }}
{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 'a' in 'abc' }}{{ 1 in [1] }}{{ 'k' in {'k': 1} }}{{ 2 not in (1, 3) }}{{ 1 == 1.0 == true }}{{ 'a' < 'b' }}{{ [1, 2] < [1, 3] }}{{ none == missing }}{{ missing == other }}{{ {'a': 1} == {'a': 1.0} }}
{{ not true or false and missing }}|{{ 0 or 'x' }}|{{ '' and 'y' }}|{{ 'a' if missing else 'b' }}|{{ 'a' if missing }}|{{ (1 if true else 2) if false else 3 }}
{{ '  x ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ 'abc' | upper | lower | capitalize }}|{{ 'hello wORLD-foo (bar' | title }}|{{ 'stra\u00dfe \u03a3\u03a3' | upper }}|{{ '\u039f\u0394\u039f\u03a3 \u0130' | lower }}|{{ 'abc' | length }}|{{ 'h\u00e9' | count }}|{{ missing | length }}
{{ [3, 1, 2] | sort }}|{{ ['b', 'A', 'c'] | sort }}|{{ ['b', 'A', 'c'] | sort(case_sensitive=true, reverse=true) }}|{{ [1, 2, 3] | sum }}|{{ [1, 5, 2] | max }}|{{ ['b', 'A'] | min }}|{{ [1, 1, 2, 'a', 'A'] | unique | list }}|{{ [1, 2, 3] | reverse | list }}|{{ 'abc' | reverse }}|{{ {'b': 1, 'a': 2} | dictsort }}
{{ [1, 2, 3] | join(', ') }}|{{ [{'a': 1}, {'a': 2}] | join('-', attribute='a') }}|{{ [{'a': {'b': 1}}] | map(attribute='a.b') | list }}|{{ ['a', 'b'] | map('upper') | join }}|{{ [1, 2, 3, 4] | select('odd') | list }}|{{ [0, 1, '', 'x'] | select | list }}|{{ [1, 2] | reject('equalto', 1) | list }}
{{ [{'r': 'a'}, {'r': 'b'}, {}] | selectattr('r', 'equalto', 'a') | list }}|{{ [{'r': 'a'}, {}] | rejectattr('r') | list }}|{{ [{'r': 'a'}, {}] | selectattr('r', 'defined') | map(attribute='r') | first }}|{{ [{'x': 1}, {}] | map(attribute='x', default='d') | list }}
{{ none | map('upper') | list }}{{ none | selectattr('x') | list }}{{ 0 | reject | list }}{{ none | map(attribute='a') | join(',') }}|{{ missing | default('d') }}|{{ '' | default('d') }}|{{ '' | default('d', true) }}|{{ none | default('d') }}|{{ 0 | d(5, boolean=true) }}
{{ '42' | int }}|{{ ' 7 ' | int }}|{{ '4.7' | int }}|{{ 'x' | int(9) }}|{{ 3.9 | int }}|{{ -3.9 | int }}|{{ true | int }}|{{ '1.5' | float }}|{{ 'x' | float }}|{{ 2 | float }}|{{ 2.5 | round }}|{{ 3.14159 | round(2) }}|{{ 2.1 | round(method='ceil') }}|{{ 2.675 | round(2) }}|{{ 5 | round }}|{{ -5 | abs }}
{{ {'a': [1, {'b': none}], 'c': 'x"y\\z\n\u00e9<>&'} | tojson }}|{{ [] | tojson }}|{{ {} | tojson }}|{{ 1.0 | tojson }}|{{ 'a' | tojson }}|{{ true | tojson }}|{{ none | tojson }}
{{ {'a': [1, {'b': []}], 'c': {}} | tojson(indent=2) }}|{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}|{{ [1, 2] | tojson(separators=(',', ':')) }}|{{ '\u00e9\U0001f600' | tojson(ensure_ascii=true) }}
{{ 'a\n b\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(width=1, blank=true) }}|{{ 'a\nb' | indent('> ') }}|{{ 'x' | string }}|{{ 5 | string | length }}|{{ 'abc' | list }}|{{ {'a': 1} | list }}|{{ 'aXbX' | replace('X', '-') }}|{{ 'aaa' | replace('a', 'b', 2) }}|{{ 'abc' | first }}|{{ [1, 2] | last }}|{{ [] | first }}|{{ [1,2,3,4,5] | batch(2, 'f') | list }}
{{ 'a,b,,c'.split(',') }}|{{ ' a  b '.split() }}|{{ 'a b c'.split(' ', 1) }}|{{ 'a b c'.rsplit(' ', 1) }}|{{ ' a b  c '.split(none, 1) }}|{{ ' a b  c '.rsplit(none, 1) }}|{{ 'a\nb\r\nc\n'.splitlines() }}|{{ 'abc'.startswith('ab') }}|{{ 'abc'.endswith(('x', 'bc')) }}|{{ 'x'.join(['a', 'b']) }}|{{ 'abcabc'.find('c') }}|{{ 'abcabc'.rfind('c') }}|{{ 'abc'.find('z') }}|{{ 'aaa'.count('a') }}|{{ 'abc'.replace('', '-') }}
{{ '  x\n'.strip() }}|{{ 'xxaxx'.lstrip('x') }}|{{ 'xxaxx'.rstrip('x') }}|{{ 'prefix-a'.removeprefix('prefix-') }}|{{ 'a.txt'.removesuffix('.txt') }}|{{ 'Ab'.upper() }}|{{ 'Ab'.lower() }}|{{ 'ab cD'.capitalize() }}|{{ '12'.isdigit() }}|{{ 'a1'.isalpha() }}|{{ 'a1'.isalnum() }}|{{ ' '.isspace() }}|{{ 'AB'.isupper() }}|{{ '1'.islower() }}|{{ '\u00b2'.isdigit() }}
{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}{% for k in {'x': 1} %}{{ k }}{% endfor %}{% for k, v in {'q': 1} | items %}{{ k }}{{ v }}{% endfor %}{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('b') }}{{ {'a': 1}.get('b', 'z') }}{{ {'a': 1}.keys() | list }}{{ {'a': 1}.values() | list }}{{ {'a': 1}['items'] is callable }}{{ {'items': 5}['items'] }}
{% for i in range(3) %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }}{{ loop.depth }}{{ loop.changed(i // 2) }} {% endfor %}{{ range(5, 0, -2) | list }}
{% for i in [1, 2, 3, 4] if i is even %}{{ i }}/{{ loop.length }} {% else %}none{% endfor %}{% for i in [] %}x{% else %}empty{% endfor %}{% for i in missing %}x{% else %}undefined{% endfor %}{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = i * 10 %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 5 %}{% endif %}{{ x }}{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t %}block {{ x }}{% endset %}{{ t }}{% set u | upper %}up{% endset %}{{ u }}{% with y = 3, z = 4 %}{{ y + z }}{% endwith %}{{ y }}
{% set ns = namespace(n=0, found=false) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}{{ ns.found }}{{ ns.nothing }}{{ ns['n'] }}{% filter upper | replace('A', 'b') %}abc{{ 1 }}{% endfilter %}
{%- for node in [{'v': 1, 'c': [{'v': 2, 'c': []}]}, {'v': 3, 'c': []}] recursive %}[{{ node.v }}{{ loop.depth0 }}{{ loop(node.c) }}]{% endfor %}
{{ 'a%s b%d %5s|%-5s|%05d|%.2f|%r|%%|%x' % ('x', 3, 'r', 'l', -42, 1.005, 'q', 255) }}|{{ '%s' % 'one' }}|{{ '%s' % [1, 'a'] }}|{{ '%(k)s-%(n)03d' % {'k': 'v', 'n': 7} }}|{{ '%s' % none }}|{{ '%s%s' | format(1, 'b') }}|{{ '%(a)s' | format(a=2) }}|{{ '%+d % d %.3s %c%c' % (5, 5, 'h\u00e9llo', 65, 'z') }}|{{ '%.5d %i %u' % (42, 3.9, true) }}|{{ 'x' % [1] }}
{{ '{} {}'.format('a', 1) }}|{{ '{1}{0}{1}'.format('a', none) }}|{{ '{x}-{y!r}'.format(x=[1], y='q') }}|{{ '{{}}{}'.format(1.0) }}|{{ 'a-b'.title() }}|{{ "they're 2nd \u00dfx \u01c6a \u0394\u039f\u03a3 \u03a3".title() }}|{{ 'hello wORLD'.title() }}|{{ '\u0149a \u1f80 \u1fb2 \ufb01'.title() }}|{{ '\u1f88\u0149'.capitalize() }}
{{ 'abcb'.index('b') }}{{ 'abcb'.rindex('b') }}|{{ 'a=b=c'.partition('=') }}|{{ 'a=b=c'.rpartition('=') }}|{{ 'abc'.partition('=') }}|{{ 'abc'.rpartition('=') }}|{{ 'ab'.center(5, '*') }}|{{ 'abc'.center(6, '*') }}|{{ 'ab'.ljust(4) }}|{{ 'ab'.rjust(4, '.') }}|{{ '-42'.zfill(5) }}|{{ 'x'.zfill(3) }}|{{ 'ab' | center(7) }}|
{{ 'the quick brown fox jumps' | truncate(12) }}|{{ 'the quick brown fox jumps' | truncate(12, true) }}|{{ 'the quick brown' | truncate(12) }}|{{ 'the quick brown fox' | truncate(9, false, '', 0) }}|{{ "it's 2 w\u00f6rds_x, ok" | wordcount }}|{{ [1, 2, 3, 4, 5, 6, 7] | slice(3) | list }}|{{ [1, 2, 3, 4] | slice(3, 'f') | list }}
{{ '<b>&"' | e }}|{{ '<' | escape ~ '>' }}|{{ ('<a>' | safe) + '<b>' }}|{{ '<a>' + ('<b>' | safe) }}|{{ '<x>' ~ ({'a': '<'} | tojson | safe) ~ '</x>' }}|{{ '<' | e | e }}
{% macro f(a, b='d', c=3) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ f(*[1, 2]) }}{{ f(**{'a': 5, 'c': 6}) }}{{ f(1, *(2,), **{'c': 4}) }}{{ f(*'xy', c=1) }}{{ dict(k=1, **{'z': 2}) }}{{ range(*[2, 5]) | list }}{{ 'a%s%s' | format(*[1, 2]) }}
a   {%- if true %}   b   {%- endif %}   c
  {% if true %}  
  x
  {% endif %}  
y {# comment #} z
  {# whole line #}
w{{ '\n' }}{{- 'q' -}}   
  end {%+ if true +%}
kept{% endif %}
{% raw %}{{ not }} {% parsed %}{% endraw %}{{ "it's" }}{{ 'say "x"' }}{{ '\x41\u00e9\101\q' }}{{ 'a' 'b' }}
{{ missing is defined }}{{ none is none }}{{ 1 is integer }}{{ true is integer }}{{ 1.0 is float }}{{ true is number }}{{ 'a' is string }}{{ {} is mapping }}{{ [] is sequence }}{{ 'a' is iterable }}{{ 1 is iterable }}{{ 4 is divisibleby 2 }}{{ 3 is odd }}{{ 'a' is in ['a'] }}{{ 1 is not none }}{{ true is true }}{{ 1 is true }}{{ 'A' is upper }}{{ none is sameas none }}{{ 2 is gt 1 }}{{ range is callable }}{{ [1] | map('string') is sequence }}
{{ dict(a=1, b='x') }}{{ (1, 2) + (3,) }}{{ [1] + [2] }}{{ 'ab' * 3 }}{{ 3 * [0] }}{{ () }}{{ (1,) }}{{ 1, 2 }}{{ -1 | abs }}{{ +3 }}{{ messages[0]['role'] }}{{ messages[0].nothing }}{{ messages.0.content }}{{ tools is none }}
""".strip("\n").split("\n")
FIRST_OF_BLOCK = next(i for i, s in enumerate(SNIPPETS) if s.startswith("a   {%-"))
SINGLE = SNIPPETS[:FIRST_OF_BLOCK] + SNIPPETS[-3:]
MULTILINE = ["\n".join(SNIPPETS[FIRST_OF_BLOCK:-3])]

ERRORS = ["{{ missing.attribute }}", "{{ missing['x'] }}", "{{ 'a' + 1 }}", "{{ 1 / 0 }}", "{{ none < 1 }}", "{{ missing() }}", "{{ [1] | map('upper') | length }}", "{{ missing | tojson }}", "{{ raise_exception('stop') }}", "{% for i in 5 %}{% endfor %}", "{{ 'a' in 5 }}", "{{ 1 in 'a' }}", "{% set a, b = [1] %}", "{{ missing + 'x' }}", "{{ [] + () }}", "{{ range(1000000) }}", "{% if %}{% endif %}", "{% for x in y %}", "{{ 'a }}", "{{ (1 }}", "{{ 1 + }}", "{% endif %}", "{% unknown %}", "{{ x | nofilter }}", "{{ x is notest }}", "{% set x.y = 1 %}", "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{% endmacro %}{{ f(b=2) }}", "{# never closed", "{{ [1,2][1:2:0] }}", "{% set a.b = 1 %}", "{{ 'x'.join([1]) }}", "{{ {[1]: 2} }}", "{{ '%s %s' % 'a' }}", "{{ '%s' % (1, 2) }}", "{{ '%d' % 'a' }}", "{{ '%(k)s' % {} }}", "{{ '%' % 1 }}", "{{ '{} {}'.format(1) }}", "{{ '{0}{}'.format(1) }}", "{{ '{'.format(1) }}", "{{ 'a'.index('b') }}", "{{ 'a'.partition('') }}", "{{ 'abc' | truncate(2) }}", "{{ dict(**[1]) }}", "{{ dict(a=1, **{'a': 2}) }}", "{{ range(*1) }}", "{{ f(**a, b=1) }}", "{{ f(*a, *b) }}", "{{ f(*a, b) }}", "{{ {'a': 1}.update({}) }}", "{{ [].append(1) }}"]


def render(template, messages, add, **variables):
    marked = "{% generation" in template or "{%- generation" in template
    try:
        rendered, spans = render_jinja_template([messages], chat_template=template, add_generation_prompt=add, return_assistant_tokens_mask=marked, **variables)
    except Exception as e:  # what jinja2 refuses, whatever it throws, troupe must refuse
        return {"error": type(e).__name__}
    text = rendered[0]
    in_bytes = [[len(text[:i].encode()) for i in span] for span in (spans[0] if marked else [])]
    return {"text": text} | ({"spans": in_bytes} if in_bytes else {})


def variables_of(name, number):
    """Special tokens, and in turn what the family's template may be told."""
    out = dict(SPECIAL)
    if name in ("tools", "llama-3.1", "llama-3.2", "qwen2.5", "smollm3", "mistral-3") and number % 2:
        out["tools"] = TOOLS
    if name in ("tools", "smollm3") and number % 3 == 0:
        out["enable_thinking"] = False
    if name.startswith("llama-3."):
        out |= {0: {}, 1: {"date_string": "1 Jan 2025"}, 2: {"tools_in_user_message": False}, 3: {"builtin_tools": ["brave_search", "code_interpreter", "get"]}}[number % 4]
    if name == "documents" and number % 3:
        out["documents"] = DOCUMENTS
    return out


def main():
    cases = []
    for (name, template), (c, messages), add in itertools.product(TEMPLATES.items(), enumerate(CONVERSATIONS), (False, True)):
        variables = variables_of(name, c)
        cases.append({"template": name, "conversation": c, "add": add, "variables": variables} | render(template, messages, add, **variables))
    snippets = SINGLE + MULTILINE
    snippet_cases = [{"source": s} | render(s, CONVERSATIONS[1], False) for s in snippets + ERRORS]
    for s in snippet_cases[: len(snippets)]:
        if "error" in s:
            print("unexpected:", s)
    for s in snippet_cases[len(snippets) :]:
        if "text" in s:
            print("no error:", s)
    out = {"now": NOW, "templates": TEMPLATES, "conversations": CONVERSATIONS, "cases": cases, "snippets": snippet_cases}
    target = pathlib.Path(__file__).parent / "chat" / "cases.json"
    target.write_text(json.dumps(out, ensure_ascii=True, indent=0) + "\n")
    print(len(cases), "cases,", len(snippet_cases), "snippets,", target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
