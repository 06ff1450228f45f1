#!/usr/bin/env python3
"""Makes jinja.json: small templates, written by hand and drawn at random, and what jinja2 writes for them in the
environment that transformers has for chat templates (trim_blocks, lstrip_blocks, loop controls, {% generation %}; tojson is
json.dumps).

  pip install jinja2                # made with 3.1.6
  python tests/golden/chat/make_jinja.py
"""

import copy
import json
import pathlib
import random
import re
import warnings

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
    "{% if x | select('string') %}a generator is true{% endif %}{% set g = x | map('string') %}{{ g | first }}{{ g | join }}|{{ g | join }}",
    "{% if d.items %}a method{% endif %}{{ {'items': 1}['items'] }}{{ {'items': 1}.get('items') }}{{ d['keys'] is callable }}",
    "{% for i in x %}{% if i > 1 %}{% continue %}{% endif %}{{ i }}{% else %}E{% endfor %}{% for i in x %}{% continue %}{% else %}E{% endfor %}",
    "{{ '<' ~ ('>' | safe) }} {{ '<' + ('>' | safe) }} {{ '<a href=\"\\'\">' | e }} {{ ['&' | e] }} {{ ('&' | e) | length }}",
    "{% raw %}{{ x }} {% if %}{% endraw %}|{%- raw -%}  y  {%- endraw -%} z", "{{ {1: 'a', true: 'b', none: 'c'} }} {{ {1: 'a'}[1] }} {{ {'a': 1}['b'] is defined }}",
    "{{ d | tojson(sort_keys=true) }} {{ s | tojson(ensure_ascii=true) }} {{ '😀' | tojson(ensure_ascii=true) }} {{ d | tojson(separators=(',', ':')) }} {{ {1: none, true: 2.0} | tojson }}",
    "{{ 'a b c'.rsplit(' ', 1) }} {{ ' a  b '.split(none, 1) }} {{ 'ab'.partition('b') }} {{ '%s-%d' % ('x', 3) }} {{ '%s' | format('y') }} {{ '{0}{1}{{}}{a}'.format(1, 2, a=3) }}",
    "{% set t = '-' %}{% for i in x %}{% macro m() %}{{ i }}{{ t }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, b=2) }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}", "{% filter upper %}a{{ s }}{% endfilter %}", "{% set a | trim | upper %}  x  {% endset %}[{{ a }}]",
    "{{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ [1, 2] < [1, 3] }} {{ (1, 2) }} {{ (1,) }} {{ () }} {{ 'ab' | list }} {{ d.keys() }} {{ d.items() }}",
    "{{ none | map('upper') | list }} {{ missing | list }} {{ none | default('x') }} {{ [none, none] | sort }} {{ d | dictsort(reverse=true) | first }}",
    "{{ 'ß é' | upper }} {{ 'ÀÉ' | lower }} {{ \"it's a-b (c)\" | title }} {{ \"it's a\".title() }} {{ 'a\\u2028b\\x0bc'.splitlines() }} {{ '\\u3000 a\\u00a0'.strip() }}|",
    "{{ 7 is divisibleby(-1) }} {{ 1 is sameas 1 }} {{ true is sameas 1 }} {{ [1] is in [[1]] }} {{ 2.0 is even }} {{ x is sequence }} {{ d.keys() is sequence }}",
    "{{ '\\101\\n\\q' }} {{ 0.1e1 }} {{ 1_000 }} {{ x.0 }} {{ d.b.1.c }} {{ ('a'.b.c is defined) if false else 1 }}",
    "{{ ['a\\u200bb', 'é\\x7f', '\\U0001f600'] }} {{ [1e16, 1e-5, 123456789.125, 1e100] }}",
    # Names that are set later, in blocks within each other.
    "{% for i in x %}{{ e2 }}{{ s }}{% endfor %}{% set s = '' %}", "{% macro f() %}[{{ s }}]{% endmacro %}{{ f() }}{% set s = 1 %}{{ f() }}{{ s }}",
    "{% for i in x %}{% for j in x %}{{ s }}{% endfor %}{% set s = i %}{% endfor %}", "{% set x = x[1:] %}{{ x }}", "{% if n %}{% set s = 1 %}{% endif %}{{ s }}",
    "{% if t %}{% set s = 1 %}{% endif %}{% for i in x %}{{ s }}{% endfor %}", "{% for i in x %}{% if s %}{{ s }}{% endif %}{% set s = '' %}{% endfor %}",
    "{% filter upper %}{{ s }}{% endfilter %}{% set s = 'q' %}{{ s }}", "{% set q %}{{ q }}{% endset %}[{{ q }}]", "{% set s %}{{ s }}{% endset %}[{{ s }}]",
    "{% set a = 1 %}{% macro f() %}{{ a }}{% endmacro %}{% set a = 2 %}{{ f() }}", "{% set a = 1 %}{% with a = 2, b = a %}{{ b }}{% endwith %}",
    "{% macro m(s=s) %}[{{ s }}]{% endmacro %}{{ m() }}", "{% macro m(a=b, b=2) %}[{{ a }}{{ b }}]{% endmacro %}{{ m(b=1) }}{{ m() }}",
    "{% for i in x %}{% set y = loop.index %}{% endfor %}{{ y }}", "{% generation %}{{ s }}{% set s = 1 %}{% endgeneration %}{{ s }}",
    # Generators are gone through once, and as far as somebody asks.
    "{% set g = x | select %}{% for a in g %}{{ a }}{% break %}{% endfor %}{{ g | list }}", "{% set g = x | select %}{{ 2 in g }}{{ g | list }}",
    "{% set g = x | select %}{% for a in g %}{{ a }}{% for c in g %}[{{ c }}]{% endfor %}{% endfor %}", "{% if x | select('none') | reverse %}T{% else %}F{% endif %}",
    "{% for q in x, [1] if n %}{{ q }}{% else %}E{% endfor %}", "{% set ns = namespace() %}{% for i in x %}{% set ns.l = loop %}{% endfor %}{{ ns.l.index }}{{ ns.l.last }}{{ ns.l.revindex0 }}",
    # Numbers.
    "{{ 1.0 // 0.1 }} {{ 7.5 // 0.1 }} {{ -7.5 // 0.1 }} {{ -1.0 // 3 }} {{ 0.0 // -2 }} {{ 7 // -2.0 }} {{ 7.5 % -2 }}",
    "{{ 9007199254740993 == 9007199254740992.0 }} {{ 9007199254740993 > 9007199254740992.0 }} {{ {10 ** 17: 'a'}[1e17] }}",
    "{{ '1_.5' | float }} {{ '1_0' | int }} {{ '_1' | int }} {{ 'a'.rjust(-9223372036854775807) }}",
    # Markup, and the German sharp s.
    "{% set m = 'a' | safe %}{{ (m | title) + '<' }}{{ (m | first) + '<' }}{{ m[::2] + '<' }}{{ (m | upper) + '<' }}{{ (m | last) + '<' }}",
    "{{ 'ß' | capitalize }}{{ 'aß'.upper() }}{{ 'ß ß'.title() }}{{ 'ßa' | title }}{{ '١٢'.isdecimal() }}{{ 'a²'.isalnum() }}",
    "{{ x | map(attribute=none) | list }}{{ [{'a': {}}] | map(attribute='a.b', default='q') | list }}{{ [{}] | map(attribute='a.b', default='q') | list }}",
    "{{ 'abcabc'.rsplit('c') }}{{ 'aXbXc'.rsplit('X', 1) }}{{ 'aaa'.rfind('aa') }}{{ 'aaaa'.split('aa') }}{{ [[], {}] | tojson(indent=1) }}{{ x | tojson(indent=0) }}",
    # What jinja2 refuses.
    "{{ raise_exception('no') }}", "{{ missing.a }}", "{{ missing() }}", "{{ x.a.b }}", "{{ 1 + 'a' }}", "{{ 1 / 0 }}", "{{ 'a' < 1 }}",
    "{% for i in n %}{% endfor %}", "{{ s | nofilter }}", "{% if %}{% endif %}", "{{ }}", "{% for %}", "{{ 'a }}", "{% endfor %}", "{{ [1, }}", "{{ missing | tojson }}",
    "{{ {(1, 2): 3} | tojson }}", "{{ 1 +}}", "{{ x.append(1) }}", "{{ 1 | tojson(colour=2) }}", "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "{{ {[1]: 2} }}", "{{ 'a'.index('b') }}",
    "{{ range(100001) | length }}", "{{ x | map('string') | length }}", "{{ x | map('string') | tojson }}", "{{ '%d' % 'a' }}", "{{ '' .split('') }}", "{{ {} | first | upper + 1 }}", "{{ n.a.b }}",
    "{% break %}", "{% set a, b = [1] %}", "{{ s.nothing() }}", "{{ '\\x4' }}",
]


class Drawn:
    """Templates that nobody would write."""

    NAMES = ["x", "s", "words", "d", "f", "t", "n", "e", "messages", "tools", "missing"]
    LITERALS = ["1", "0", "-3", "2.5", "'a'", "'ab c'", "''", "'a,b,,c'", "true", "false", "none", "[]", "[1, 2]", "['x', 'y']", "{}",
                "{'a': 1}", "(1, 2)", "'\\n'", "'é<&'"]
    FILTERS = ["capitalize", "count", "default('q')", "default('z', true)", "dictsort", "first", "float", "indent(2, true)", "int(7)", "items",
               "join(', ')", "join('-', 'role')", "last", "length", "list", "lower", "map('upper')", "map(attribute='role')", "map('length')",
               "max", "min", "reject('none')", "rejectattr('role', 'eq', 'user')", "replace('a', '<&>', 1)", "replace('', '.')", "reverse", "safe", "e",
               "select('odd')", "selectattr('role')", "selectattr('role', 'equalto', 'user')", "sort", "sort(true)", "string", "sum", "title",
               "tojson", "tojson(indent=2)", "trim", "unique", "upper", "wordcount"]
    TESTS = ["defined", "none", "boolean", "true", "integer", "float", "number", "string", "mapping", "iterable", "sequence", "callable", "odd",
             "lower", "upper", "eq(1)", "in x", "sameas(true)", "gt(1)", "lt('b')"]
    METHODS = ["strip()", "rstrip('c ')", "split()", "split(',')", "split(none, 1)", "rsplit(' ', 1)", "splitlines()", "startswith(('h', 'a'))",
               "replace('a', 'L')", "upper()", "title()", "swapcase()", "find('o')", "count('')", "removeprefix('a')", "partition(' ')", "center(9)",
               "isdigit()", "isupper()", "get('a')", "get('q', 1)", "items() | list", "keys() | list", "values() | list", "index(2)"]

    def __init__(self, seed):
        self.random = random.Random(seed)

    def one(self, choices):
        return self.random.choice(choices)

    def primary(self, depth):
        return self.one([self.one(self.NAMES), self.one(self.LITERALS), f"({self.expression(depth)})"])

    def expression(self, depth):
        if depth <= 0:
            return self.one(self.NAMES + self.LITERALS)
        name = self.one(self.NAMES)
        a, b, p = self.expression(depth - 1), self.expression(depth - 1), self.primary(depth - 1)
        return self.one([
            a, p, f"{a} {self.one(['+', '-', '*', '/', '//', '%', '~', '~'])} {b}", f"{a} {self.one(['==', '!=', '<', '>=', 'in', 'not in'])} {b}",
            f"{a} {self.one(['and', 'or'])} {b}", f"not {a}", f"({a} if {b} else {p})", f"{p}[{a}]", f"{name}[{self.one(['', '1', '-2'])}:{self.one(['', '2', '-1'])}]",
            f"{name}[::{self.one(['-1', '2'])}]", f"{p}.{self.one(['a', 'b', 'k', 'role', 'items', 'get', '0'])}", f"{p} | {self.one(self.FILTERS)}",
            f"{p} | {self.one(self.FILTERS)} | {self.one(['list', 'length', 'string', 'join'])}", f"({p} is {self.one(['', 'not '])}{self.one(self.TESTS)})",
            f"{p}.{self.one(self.METHODS)}", f"[{a}, {b}]", f"{{'a': {a}, {self.one(['1', 'true', repr('k')])}: {b}}}",
        ])

    def statement(self, depth):
        blank = lambda: self.one(["", " ", "\n", "  \n  ", "-x-"])
        begin, end = lambda: self.one(["{%", "{%-", "{%+"]), lambda: self.one(["%}", "-%}", "+%}"])
        if depth <= 0:
            return "{{ " + self.expression(2) + " }}"
        body = blank() + self.statement(depth - 1) + blank() + self.statement(depth - 1) + blank()
        e = self.expression(2)
        return self.one([
            "{{ " + e + " }}", f"{begin()} if {e} {end()}{body}{begin()} else {end()}{blank()}{begin()} endif {end()}",
            f"{begin()} for i in {self.one(['x', 'messages', 'd', e])} {end()}{body}{{{{ loop.index }}}}{begin()} endfor {end()}",
            f"{begin()} for k, v in d.items() if {e} {end()}{{{{ k }}}}{body}{{% else %}}E{begin()} endfor {end()}",
            f"{begin()} set x = {e} {end()}{body}", f"{begin()} set y | upper {end()}{body}{begin()} endset {end()}{{{{ y }}}}",
            f"{begin()} macro q(a, b={e}) {end()}{body}{{{{ a }}}}{{{{ b }}}}{begin()} endmacro {end()}{{{{ q({self.expression(1)}) }}}}",
            "{#" + blank() + "-#}" + body, f"{begin()} set ns = namespace(v=1) {end()}{{% for i in x %}}{{% set ns.v = {e} %}}{{% endfor %}}{{{{ ns.v }}}}",
        ])

    def templates(self, n):
        for _ in range(n):
            yield "{{ " + self.expression(self.random.randrange(1, 4)) + " }}" if self.random.random() < 0.6 else self.statement(2)


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

    def case_of(template):
        try:
            return {"template": template, "text": environment.from_string(template).render(**copy.deepcopy(VARIABLES))}
        except Exception as error:
            return {"template": template, "error": f"{type(error).__name__}: {error}"}

    warnings.simplefilter("ignore")
    cases = [case_of(template) for template in TEMPLATES]
    # Of those at random, what has a text that is no Python object's.
    seen = set()
    for template in Drawn(seed=1).templates(3000):
        case = case_of(template)
        if template not in seen and not re.search(r"<(generator|built-in|macro)|object at 0x|undefined", case.get("text", "undefined"), re.IGNORECASE):
            cases.append({"drawn": True, **case})
        seen.add(template)
    target = pathlib.Path(__file__).resolve().parent / "jinja.json"
    target.write_text(json.dumps({"variables": VARIABLES, "cases": cases}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
