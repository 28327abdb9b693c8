"""One hostile file through the command line, and what has to hold after it whatever the file was.

An input is refused or accepted. Refused: exit code 2, a message, and no file written. Accepted: what was written is
whole, and the input's free text stands nowhere in it but in comments and string literals. Anything else (another
exception, a hang, a part of an output) is a `Failure`.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

from codegen import manifest, package
from codegen.cli import main
from codegen.errors import BadInput
from codegen.plan import make_plan
from codegen.render import render
from codegen.spec import NAME_PATTERN, RouterSpec, dump_spec, load_spec

from . import inputs

LIMIT_S = 20.0
"""Of processor time; no case takes so long. Waiting, which a busy machine adds, may be ten times as long."""
PLAIN = "plain"


class Failure(AssertionError):
    """What must not happen, and for which input."""


class _TooLong(BaseException):
    pass


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Inside, a hang and any exception but `BadInput` is a `Failure`: a user would see a traceback."""

    def late(*_: object) -> None:
        raise _TooLong

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, LIMIT_S), (signal.SIGALRM, signal.ITIMER_REAL, 10 * LIMIT_S))
    before = [signal.signal(number, late) for number, _, _ in timers]
    for _, timer, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    except BadInput:
        raise
    except _TooLong:
        raise Failure(f"took more than {LIMIT_S} s") from None
    except BaseException as error:
        raise Failure(f"{type(error).__name__}: {error}"[:500]) from error
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def _run(arguments: list[str]) -> tuple[int, str]:
    """Exit code and stderr of `python build.py ARGUMENTS`, in this process."""
    # A terminal or pipe takes no lone surrogates; Python's own stderr writes them as escapes.
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with _watched(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
        code = main(arguments, "build.py")
    said.flush()
    return code, said.buffer.getvalue().decode()


def try_spec(random: Random, *, render_one_in: int = 10) -> str:
    """A YAML file through `load_spec` and, if that refuses it or at times if not, `generate`.

    "refused", "accepted", or "rendered" where a package was written and looked at.
    """
    content = inputs.spec_file(random)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, f"{inputs.name_of(content)}.yaml"), Path(folder, "out")
        path.write_bytes(content)
        try:
            with _watched():
                spec = load_spec(path)
        except BadInput:
            code, said = _run(["generate", "--spec", str(path), "--out", str(out)])
            _require_refused(code, said, str(path))
            _require(not out.exists(), "a refused spec has left an output")
            return "refused"
        require_round_trip(spec, Path(folder))
        if random.randrange(render_one_in):
            return "accepted"
        code, said = _run(["generate", "--spec", str(path), "--out", str(out)])
        _require(code == 0, f"an accepted spec ends in exit code {code}: {said}")
        package_dir = out / "normgate"
        manifest.check_outputs(manifest.load_manifest(package_dir), package_dir)
        require_only_text(spec)
        return "rendered"


def try_config(random: Random) -> str:
    """A config.json through `add`. "refused" or "accepted"."""
    content = inputs.config_file(random)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "config.json"), Path(folder, "out")
        path.write_bytes(content)
        arguments = ["add", str(path), "--out", str(out)]
        if random.random() < 0.5:
            name = random.choice(inputs.BREAKING_OUT).replace("\0", "")
            arguments += ["--name", name if random.random() < 0.3 else "a-model"]
        if random.random() < 0.7:
            arguments += ["--residual", "yes", "--gate-weight-dtype", "bfloat16", "--norm-order", "A"]
        code, said = _run(arguments)
        written = sorted(found for found in Path(folder).rglob("*") if found.is_file() and found != path)
        if code:
            _require_refused(code, said, str(path))
            _require(not written, f"a refused config has left {written}")
            return "refused"
        _require(len(written) == 1 and written[0].parent == out, f"add wrote {written}")
        require_round_trip(load_spec(written[0]), Path(folder))
        return "accepted"


def require_round_trip(spec: RouterSpec, folder: Path) -> None:
    """The spec written is the spec read; its name is fit for a path, a comment and a literal."""
    _require(re.fullmatch(NAME_PATTERN.strip("^$"), spec.name) is not None, f"the name {spec.name!r} was accepted")
    again = folder / "again" / f"{spec.name}.yaml"
    again.parent.mkdir()
    again.write_text(dump_spec(spec), encoding="utf-8")
    _require(load_spec(again) == spec, "the spec read back is another")


def require_only_text(spec: RouterSpec) -> None:
    """What is generated from `spec` differs from what a plain name and source give in comments and literals alone."""
    plain = spec.model_copy(update={"name": PLAIN, "sources": (PLAIN,)})
    ours, others = _files(spec), _files(plain)
    _require(ours.keys() == others.keys(), "the name or the sources show in the paths of outputs")
    for path, text in ours.items():
        _require(re.fullmatch(r"[a-z0-9_]+([./][a-z0-9_]+)*", path) is not None, f"the path {path!r} is generated")
        if path.endswith(".py"):
            same = ast.dump(_PlainName(spec.name).visit(ast.parse(text))) == ast.dump(ast.parse(others[path]))
        else:
            same = code_of(text) == code_of(others[path])
        _require(same, f"{path}: the name or the sources show in the code")


def _files(spec: RouterSpec) -> Mapping[str, str]:
    """The rendered files, and of the manifest what compilers are told: sources, with functions and SM targets."""
    plan = make_plan([spec])
    files = render(plan)
    sources = package.manifest_of(plan, files, {}).sources
    return {**files, "sources.txt": "\n".join(map(repr, sources))}


class _PlainName(ast.NodeTransformer):
    def __init__(self, name: str) -> None:
        self.name = name

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant(PLAIN) if node.value == self.name else node


_C = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<char>'(?:[^'\\\n]|\\.)+')"""
    r"""|(?P<word>[A-Za-z0-9_.]+(?:'[0-9]+)*)|(?P<space>\s+)|(?P<mark>[][(){}<>,;:?!~%^&*\-+=|/\#\\@])""",
    re.DOTALL,
)
_CLOSING = {")": "(", "]": "[", "}": "{"}


def code_of(text: str) -> list[str]:
    """The tokens of C++ without comments, each string literal as one kind of token; `Failure` where it is none.

    Brackets have to match, and every character has to belong to a token.
    """
    tokens: list[str] = []
    opened: list[str] = []
    at = 0
    while at < len(text):
        found = _C.match(text, at)
        _require(found is not None, f"no C++ at {text[at : at + 40]!r}")
        assert found is not None
        at = found.end()
        if found.lastgroup in ("comment", "space"):
            continue
        token = '""' if found.lastgroup == "string" else found.group()
        tokens.append(token)
        if token in _CLOSING.values():
            opened.append(token)
        elif token in _CLOSING:
            _require(bool(opened) and opened.pop() == _CLOSING[token], f"{token} closes nothing")
    _require(not opened, f"{opened} stay open")
    return tokens


def _require_refused(code: int, said: str, path: str) -> None:
    _require(code == 2, f"exit code {code}, 2 would be right: {said}")
    _require(bool(said.strip()), "refused without a word")
    _require("Traceback" not in said, said)
    problems = said.strip().splitlines()
    _require(all(line.isprintable() for line in problems), f"control characters in {said!r}")
    _require(len(said) < 200_000, f"{len(said)} characters of message")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Failure(otherwise[:2000])
