"""Hostile input files: the shipped specs and configs, broken in every way that came to mind; from a seed."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SPECS = tuple(path.read_text() for path in sorted((ROOT / "specs").glob("*.yaml")))
CONFIGS = tuple(json.loads(path.read_text()) for path in sorted((ROOT / "tests/data/configs").glob("*.json")))
HUGE = 100 << 20

BREAKING_OUT = (
    'x"; system("id"); "',
    "*/ int x; /*",
    "a\\",
    "a\nint main() {}",
    "a\r#include <x>",
    "??/\n",
    '""" + exit() + """',
    "'''; import os",
    "{{ 7 * 7 }}",
    "{% include '/etc/passwd' %}",
    "../../../../etc/cron.d/x",
    "/etc/passwd",
    "..",
    ".",
    "~",
    "a/b",
    "c:\\a",
    "$(id)",
    "`id`",
    "; rm -rf x",
    "-DX=1",
    "--compiler-bindir=x",
    "%s%n",
    "a\0b",
    "\x1b[31m",
    "\u202egpj",
    "ａ",
    "a\u2028b",
    "\ud800",
    "a" * 65,
    "a" * 5000,
    "",
    " ",
    "nan",
    "null",
    "true",
    "1e5",
)
"""Texts that would leave a C string, a comment, a Python literal, a template, a path, a command or a terminal's line."""

_SCALARS = (
    "0", "-0", "-1", "1", "3", "7", "65537", "4294967296", "9" * 30, "9" * 5000, "-" + "9" * 400, "1e999", "-1e999",
    "1e-999", ".nan", ".inf", "-.INF", "NaN", "Infinity", "0x10", "0o7", "1_000", "1:30", "true", "false", "yes", "~",
    "null", "none", "auto", "all", "", "''", '"\\u0000"', '"\\ud800"', '"\\U00110000"', "!!python/object/apply:os.system [id]",
    "!!int '8'", "&a x", "*a", "[]", "{}", "[[]]", "{a: 1}", "[1, 2]", "- 1", "? [a]", "|", ">-", "2020-01-01", "=", "<<",
    "bfloat16", "float32", "sigmoid", "softmax", "A", "[80, 90]", "[90, 80]", "[90, 90]", "[-1]", "[.nan]",
)  # fmt: skip

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 64, 1 << 31, 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", "none",
    "deepseek_v3", "float8_e4m3fn", "torch.bfloat16", [], {}, [[]], [None], {"a": []}, ["sigmoid"], "sigmoid",
    *BREAKING_OUT,
)  # fmt: skip


def spec_file(random: Random) -> bytes:
    """The bytes of a YAML file."""
    if random.random() < 0.04:
        return random.choice(_WHOLE_SPECS)(random)
    text = random.choice(SPECS)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        text = random.choice(_SPEC_CHANGES)(random, text)
    return _as_bytes(random, text)


def config_file(random: Random) -> bytes:
    """The bytes of a config.json."""
    if random.random() < 0.04:
        return random.choice(_WHOLE_CONFIGS)(random)
    config = copy.deepcopy(random.choice(CONFIGS))
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        random.choice(_CONFIG_CHANGES)(random, config)
    text = json.dumps(config, indent=random.choice((None, 2)))
    if random.random() < 0.2:
        text = random.choice((_cut, _spliced, _noise))(random, text)
    return _as_bytes(random, text)


def name_of(content: bytes) -> str:
    """The name that a spec's file has to have, where it gives one that a file can have; else `spec`."""
    found = re.search(rb"^name: *([a-zA-Z0-9._-]{1,80}) *$", content, re.MULTILINE)
    return found.group(1).decode() if found else "spec"


def _as_bytes(random: Random, text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    kind = random.random()
    if kind < 0.02:
        return random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0")) + raw
    if kind < 0.04:
        return text.encode("utf-16", "surrogatepass")
    if kind < 0.08 and raw:
        at = random.randrange(len(raw))
        return raw[:at] + random.randbytes(random.randint(1, 4)) + raw[at + 1 :]
    return raw


# Changes of a spec's text. They work on lines, so that most of what comes out is YAML still.


def _other_value(random: Random, text: str) -> str:
    lines = text.splitlines()
    at = random.choice([index for index, line in enumerate(lines) if ":" in line] or [0])
    key = lines[at].partition(":")[0] if lines else "a"
    lines[at : at + 1] = [f"{key}: {random.choice(_SCALARS)}"]
    return "\n".join(lines) + "\n"


def _broken_out(random: Random, text: str) -> str:
    """A text that breaks out, quoted as YAML wants it or not at all."""
    word = random.choice(BREAKING_OUT)
    key = random.choice(("name", "name", "sources", "dtypes", "logits_from"))
    value = json.dumps(word) if random.random() < 0.7 else word
    value = f"[{value}]" if key == "sources" else value
    return re.sub(rf"^{key}:.*$", lambda _: f"{key}: {value}", text, count=1, flags=re.MULTILINE)


def _plausible(random: Random, text: str) -> str:
    """Numbers in their ranges, so that some of what is tried is right."""
    key, values = random.choice(
        (
            ("hidden_size", (8, 64, 512, 2688, 2880, 4096, 65536)),
            ("num_experts", (1, 7, 17, 60, 128, 258, 896, 1024)),
            ("top_k", (1, 2, 6, 8, 32)),
            ("eps", ("1e-6", "1.0e-5", "0.1")),
            ("gate_bias", ("true", "false")),
        )
    )
    return re.sub(rf"^( *{key}:).*$", lambda found: f"{found[1]} {random.choice(values)}", text, flags=re.MULTILINE)


def _no_line(random: Random, text: str) -> str:
    lines = text.splitlines(keepends=True) or [""]
    del lines[random.randrange(len(lines))]
    return "".join(lines)


def _line_twice(random: Random, text: str) -> str:
    lines = text.splitlines(keepends=True) or ["a: 1\n"]
    lines.insert(random.randrange(len(lines) + 1), random.choice(lines))
    return "".join(lines)


def _indented(random: Random, text: str) -> str:
    lines = text.splitlines(keepends=True) or [""]
    at = random.randrange(len(lines))
    lines[at] = random.choice((" ", "  ", "\t", "- ", "? ", ": ", "#", "%", "&a ", "*a ")) + lines[at]
    return "".join(lines)


def _unknown_key(random: Random, text: str) -> str:
    return text + f"{json.dumps(random.choice(BREAKING_OUT))}: {random.choice(_SCALARS)}\n"


def _cut(random: Random, text: str) -> str:
    return text[: random.randrange(len(text) + 1)]


def _spliced(random: Random, text: str) -> str:
    other = random.choice(SPECS)
    return text[: random.randrange(len(text) + 1)] + other[random.randrange(len(other)) :]


def _noise(random: Random, text: str) -> str:
    at = random.randrange(len(text) + 1)
    ranges = ((0, 32), (32, 127), (127, 160), (0x2000, 0x2100), (0xD800, 0xE000), (0x10000, 0x10FFFF))
    drawn = "".join(chr(random.randrange(*random.choice(ranges))) for _ in range(random.randint(1, 6)))
    return text[:at] + drawn + text[at:]


_SPEC_CHANGES: tuple[Callable[[Random, str], str], ...] = (
    _other_value, _other_value, _broken_out, _broken_out, _plausible, _plausible, _plausible, _no_line, _line_twice,
    _indented, _unknown_key, _cut, _spliced, _noise,
)  # fmt: skip


# Whole files.


def _laughs(random: Random) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, random.randint(2, 30))]
    return "\n".join(lines).encode()


def _deep(random: Random) -> bytes:
    depth = random.choice((9, 100, 1000, 100_000))
    opening = random.choice(("[", "{a: ", '{"a":', "- "))
    return (opening * depth).encode()


def _self_reference(random: Random) -> bytes:
    return random.choice((b"a: &a [*a]", b"&a {*a : *a}", b"<<: &a {<<: *a}", b"&a a: *a"))


def _huge(random: Random) -> bytes:
    return random.choice((b" ", b"a", b"[", b"a: 1\n", b"\n")) * (HUGE if random.random() < 0.05 else 1 << 20)


def _many(random: Random) -> bytes:
    count = random.choice((1001, 20_000))
    return random.choice(
        ("".join(f"k{n}: {n}\n" for n in range(count)), "a: [" + "1," * count + "]", "---\n" * count)
    ).encode()


def _random_bytes(random: Random) -> bytes:
    return random.randbytes(random.randint(0, 300))


def _yaml_of_anything(random: Random) -> bytes:
    return yaml.safe_dump({str(random.choice(_VALUES)): random.choice([1, [1, {"a": 2}], "x"])}).encode()


_WHOLE_SPECS: tuple[Callable[[Random], bytes], ...] = (
    _laughs, _deep, _self_reference, _huge, _many, _random_bytes, _yaml_of_anything,
)  # fmt: skip


# Changes of a config.


def _config_value(random: Random, config: dict[str, Any]) -> None:
    if config:
        config[random.choice(list(config))] = random.choice(_VALUES)


def _config_name(random: Random, config: dict[str, Any]) -> None:
    config[random.choice(("_name_or_path", "_name_or_path", "model_type", "architectures"))] = random.choice(
        (random.choice(BREAKING_OUT), f"org/{random.choice(BREAKING_OUT)}")
    )


def _config_without(random: Random, config: dict[str, Any]) -> None:
    if config:
        del config[random.choice(list(config))]


def _config_inside(random: Random, config: dict[str, Any]) -> None:
    inner = random.choice((copy.deepcopy(config), {}, [], None, 1, "x", random.choice(CONFIGS)))
    config[random.choice(("text_config", "ffn_config"))] = inner


def _config_of_two(random: Random, config: dict[str, Any]) -> None:
    other = random.choice(CONFIGS)
    for key in random.sample(list(other), min(len(other), 4)):
        config[key] = other[key]


def _config_number(random: Random, config: dict[str, Any]) -> None:
    numbers = [key for key, value in config.items() if isinstance(value, (int, float)) and abs(value) < 1e300]
    if numbers:
        key = random.choice(numbers)
        config[key] = random.choice(
            (config[key] * 2, config[key] + 1, -config[key], float(config[key]), 1e300, 10**400)
        )


_CONFIG_CHANGES: tuple[Callable[[Random, dict[str, Any]], None], ...] = (
    _config_value, _config_value, _config_name, _config_name, _config_without, _config_inside, _config_of_two,
    _config_number, _config_number,
)  # fmt: skip


def _config_repeats(random: Random) -> bytes:
    return (
        b'{"hidden_size": 8, "hidden_size": '
        + random.choice((b"16", b"1e999", b"NaN", b"-Infinity", b"9" * 5000))
        + b"}"
    )


_WHOLE_CONFIGS: tuple[Callable[[Random], bytes], ...] = (
    _deep, _huge, _many, _random_bytes, _config_repeats, lambda random: random.choice((b"[]", b"1", b"null", b'""', b"")),
)  # fmt: skip
