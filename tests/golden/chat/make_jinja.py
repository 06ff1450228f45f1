#!/usr/bin/env python3
"""Makes jinja.json: small templates, and what jinja2 writes for them in the environment that transformers has for chat
templates (trim_blocks, lstrip_blocks, loop controls, {% generation %}; tojson is json.dumps).

  pip install jinja2                # made with 3.1.6
  python tests/golden/chat/make_jinja.py
"""

import json
import pathlib

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

VARIABLES = {
    "x": [1, 2, 3], "s": "héllo wörld", "d": {"a": 1, "b": [1, {"c": None}], "k": "v"}, "f": 1.5, "t": True, "n": None,
    "e": "", "words": "  two  words \n", "tools": [{"name": "f", "parameters": {"type": "object", "n": [1, 2.0, -3e-7]}}],
    "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}],
}

TEMPLATES = [
    # Text, white space, comments.
    "", "a\n", "a\n\n", "{{ s }}\n", "a {# c #} b", "a\n  {# c #}\nb", "  {% if t %}\n  x\n  {% endif %}\ny",
    "a  {%- if t %}  b  {%- endif %}  c", "a\n{% if t -%}\n  b\n{%- endif -%}\n c", "{{- s -}}  a", "x {{- ' y ' -}} z",
    "  {%+ if t %}a{% endif %}", "{% if t +%}\na{% endif %}", "{{ '{{' }}{{ '%}' }}", "a { b } { c", "{{ {'a': {'b': 1}}['a'] }}",
    "\t{% if t %}\n\ta\n\t{% endif %}\n", "a {% if t %}b{% endif %}\nc", "line\r\n{% if t %}\r\nx{% endif %}",
    # Expressions.
    "{{ 1 + 2 * 3 }} {{ (1 + 2) * 3 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ -2 ** 2 }}",
    "{{ 1.0 }} {{ 1e20 }} {{ 1.5e-7 }} {{ 0.1 + 0.2 }} {{ 3 / 1 }} {{ 10 ** -2 }} {{ 7.5 // 2 }} {{ 7.5 % 2 }}",
    "{{ 1 < 2 }} {{ 'a' < 'b' }} {{ 1 == 1.0 }} {{ true == 1 }} {{ '1' == 1 }} {{ none == none }} {{ x == [1, 2, 3] }}",
    "{{ not t }} {{ not n and t }} {{ n or 'x' }} {{ e or n }} {{ t and 'y' }} {{ 1 if t else 2 }} {{ 'a' if n }}",
    "{{ 'a' in s }} {{ 'llo' in s }} {{ 2 in x }} {{ 'a' in d }} {{ 4 not in x }} {{ 'q' not in d }}",
    "{{ 'a' ~ 1 ~ n ~ t ~ 1.0 ~ x }}", "{{ 'a' + 'b' }} {{ [1] + [2] }} {{ 'ab' * 3 }}", "{{ 'a' 'b' }}",
    "{{ x[0] }} {{ x[-1] }} {{ x[1:] }} {{ x[:-1] }} {{ x[::-1] }} {{ x[0:2:1] }} {{ s[1] }} {{ s[-3:] }} {{ s[::-1] }} {{ x[5:] }}",
    "{{ d.a }} {{ d['b'][1].c }} {{ d.b.0 }} {{ d['b'][-1]['c'] is none }} {{ d.missing }} {{ d['missing'] is defined }}",
    "{{ [1, 'a', none, true, 1.5, {'k': ['v']}] }} {{ (1, 2)[1] }} {{ {} }} {{ [] }}", "{{ \"it's\" }} {{ ['it\\'s'] }} {{ ['a\\nb'] }}",
    "{{ '\\u00e9\\x41\\t|' }}", "{{ missing }}|{{ missing is defined }}|{{ missing is undefined }}", "{{ true }} {{ True }} {{ None }}",
    "{{ t is boolean }} {{ 1 is integer }} {{ 1.0 is float }} {{ s is string }} {{ d is mapping }} {{ x is sequence }} {{ x is iterable }}",
    "{{ s is not none }} {{ n is none }} {{ 1 is number }} {{ d is iterable and d is not string }} {{ 3 is odd }} {{ 4 is even }}",
    "{{ 6 is divisibleby 3 }} {{ 1 is equalto 1 }} {{ 1 is eq(2) }} {{ 1 is in [1] }} {{ 'A' is upper }} {{ t is true }} {{ t is false }}",
    # Filters.
    "[{{ words | trim }}] {{ s | upper }} {{ 'aBc dE' | title }} {{ 'aBc' | capitalize }} {{ 'ABC' | lower }} {{ x | length }} {{ s | length }}",
    "{{ x | join(', ') }} {{ x | first }} {{ x | last }} {{ x | reverse | list }} {{ 'abc' | reverse }} {{ 'abc' | list }} {{ d | list }}",
    "{{ missing | default('z') }} {{ e | default('z') }} {{ e | default('z', true) }} {{ n | default('z', boolean=true) }}",
    "{{ d | tojson }} {{ d | tojson(indent=2) }} {{ s | tojson }} {{ 'a\"b\\\\\\n\\u0001' | tojson }} {{ [] | tojson(indent=4) }}",
    "{{ tools | tojson }} {{ tools | tojson(indent=4) }}", "{{ 'a-b-a' | replace('a', 'x') }} {{ 'aaa' | replace('a', 'b', 2) }}",
    "{{ '3' | int }} {{ '3.7' | int }} {{ 'z' | int }} {{ 2.9 | int }} {{ '2.5' | float }} {{ 3 | string + '!' }} {{ -3 | abs }}",
    "{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ messages | rejectattr('role', 'eq', 'user') | map(attribute='content') | list }} {{ x | select('odd') | list }} {{ [0, 1] | select | list }}",
    "{{ [3, 1, 2] | sort }} {{ ['b', 'A'] | sort }} {{ [1, 2] | sort(reverse=true) }} {{ [1, 1, 2] | unique | list }} {{ x | sum }} {{ x | max }}",
    "{{ d | dictsort | map('first') | list }} {{ d | items | list | length }} {{ x | map('string') | join }} {{ 'a\\nb\\n\\nc' | indent(2) }}",
    "{{ 'a\\nb' | indent(2, true) }} {{ 'a b  c' | wordcount }} {{ s | trim | upper | length > 3 }} {{ not s | length }}",
    # Methods.
    "[{{ words.strip() }}] [{{ words.lstrip() }}] [{{ 'xxaxx'.strip('x') }}] [{{ 'a\\n'.rstrip('\\n') }}] {{ 'a,b,,c'.split(',') }} {{ words.split() }}",
    "{{ 'a b c'.split(' ', 1) }} {{ 'a</t>b'.split('</t>')[-1] }} {{ s.startswith('hé') }} {{ s.endswith('x') }} {{ 'abc'.startswith(('x', 'a')) }}",
    "{{ 'aXa'.replace('a', 'b') }} {{ s.upper() }} {{ s.find('w') }} {{ 'q'.find('z') }} {{ ','.join(['a', 'b']) }} {{ 'a\\nb'.splitlines() }}",
    "{{ d.get('a') }} {{ d.get('q') }} {{ d.get('q', 7) }} {{ d.keys() | list }} {{ d.items() | list | first | first }} {{ d.values() | list | length }}",
    "{{ 'banana'.count('an') }} {{ 'prefix-x'.removeprefix('prefix-') }} {{ '12'.isdigit() }} {{ '{}-{}'.format('a', 1) }}",
    # Statements.
    "{% for i in x %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.first }}/{{ loop.last }}/{{ loop.revindex }}/{{ loop.length }};{% endfor %}",
    "{% for i in [] %}a{% else %}none{% endfor %}", "{% for k, v in d.items() %}{{ k }}={{ v }},{% endfor %}", "{% for c in 'añb' %}{{ c }}.{% endfor %}",
    "{% for i in x if i != 2 %}{{ loop.index }}:{{ i }} {% endfor %}", "{% for i in range(3) %}{{ i }}{% endfor %}{{ range(1, 7, 2) | list }}",
    "{% for i in x %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% if i == 3 %}{% break %}{% endif %}{% endfor %}",
    "{% for i in x %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }} {% endfor %}", "{% for i in x %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% set a = 1 %}{% for i in x %}{% set a = i %}{{ a }}{% endfor %}{{ a }}", "{% set ns = namespace(a=1, b='x') %}{% for i in x %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}",
    "{% if n %}a{% elif t %}b{% else %}c{% endif %}", "{% if n %}a{% elif e %}b{% else %}c{% endif %}", "{% set a, b = [1, 2] %}{{ b }}{{ a }}",
    "{% set a %}x {{ s }} y{% endset %}[{{ a }}] {{ a | length }}", "{% macro m(a, b='z') %}<{{ a }}{{ b }}>{% endmacro %}{{ m(1) }}{{ m(2, 3) }}{{ m(b=4, a=5) }}",
    "{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}", "{% generation %}a{{ s }}{% endgeneration %}",
    "{% for m in messages %}{% if loop.index0 == 0 and m.role == 'system' %}[{{ m['content'] }}]{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}",
    "{% for m in messages[::-1] %}{% set i = (messages | length - 1) - loop.index0 %}{{ i }}{{ m.role }} {% endfor %}",
    "{% set messages = messages[1:] %}{{ messages | length }}", "{{ dict(a=1, b=2) }}", "{% if tools is defined and tools %}T{% endif %}{% if q is defined %}Q{% endif %}",
    # What jinja2 refuses.
    "{{ raise_exception('no') }}", "{{ missing.a }}", "{{ missing() }}", "{{ x.a.b }}", "{{ 1 + 'a' }}", "{{ 1 / 0 }}", "{{ 'a' < 1 }}",
    "{% for i in n %}{% endfor %}", "{{ s | nofilter }}", "{% if %}{% endif %}", "{{ }}", "{% for %}", "{{ 'a }}", "{% endfor %}", "{{ [1, }}", "{{ missing | tojson }}",
]


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller):
        return caller()


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def main():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    cases = []
    for template in TEMPLATES:
        try:
            cases.append({"template": template, "text": environment.from_string(template).render(**VARIABLES)})
        except Exception as error:
            cases.append({"template": template, "error": f"{type(error).__name__}: {error}"})
    target = pathlib.Path(__file__).resolve().parent / "jinja.json"
    target.write_text(json.dumps({"variables": VARIABLES, "cases": cases}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
