"""Compile a generated package into its one library, libnormgate.so, from what its manifest says.

The build runs on ninja rules of our own rather than torch.utils.cpp_extension's builder: on a CPU build of
torch that builder refuses CUDA sources (it finds no CUDA_HOME and links libraries that are not there), and it
gives nvcc no depfile there, so an edited header would rebuild nothing. cpp_extension is still asked where
torch's headers and libraries are.

Only sources marked `torch` see torch's headers. Everything else needs no more than nvcc, a host compiler and
ninja; no GPU, no system CUDA.
"""

from __future__ import annotations

import ctypes
import filecmp
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from . import terminal
from .arch import gencode
from .errors import CheckFailed, Spilled, ToolError
from .manifest import GENERATE, NAME, Manifest, Source, load_manifest, sha256
from .naming import source_path
from .output import locked, os_errors, replace_whole
from .resources import BuildReport, Row, Usage, parse, spilling
from .toolkit import Toolkit, find_ninja, find_toolkit, host_compiler

LIBRARY = "libnormgate.so"
STAMP = "libnormgate.build.json"

_OPTIMIZE = ("-O3", "-std=c++17")
OLDEST_TORCH = (2, 10)
"""What the library needs: only what the stable ABI promised then is used, so it serves later torches too."""

_TORCH_DEFINES = (f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}{0:012x}", "-DTORCH_STABLE_ONLY")
# The binding finds torch's current stream through a weak symbol, for which --as-needed (a default of some
# gcc) would drop the library that has it.
_TORCH_LIBS = ("-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", "-ltorch_cpu", "-lc10")
_CUDA_LIBS = ("-lcudart_static", "-ldl", "-lrt", "-lpthread")

# Both compilers' words go to a file beside the object: ptxas' report outlives the run that made it, so a
# build with nothing to do still shows its table. On an error they are shown instead.
_RULES = """\
ninja_required_version = 1.11

rule compile
  command = $compiler $flags -MD -MF $out.d -c $in -o $out > $out.log 2>&1 || { cat $out.log; exit 1; }
  description = $source
  depfile = $out.d
  deps = gcc

rule link
  command = $compiler $flags -o $out.part $in $libs && mv -f $out.part $out
  description = $out
"""


@dataclass(frozen=True)
class _TorchPaths:
    include: tuple[str, ...]
    lib: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class _Chosen:
    """A source to build: the SMs it gets machine code for (none for a .cpp), and the one of them, if any,
    that gets PTX too.
    """

    source: Source
    sms: tuple[int, ...] = ()
    ptx_sm: int | None = None


@dataclass(frozen=True)
class _Selection:
    """All that is to be built, and the SMs it is built for."""

    sources: tuple[_Chosen, ...]
    sms: tuple[int, ...]

    @property
    def machine_code_sms(self) -> tuple[int, ...]:
        return tuple(sorted({sm for chosen in self.sources for sm in chosen.sms}))

    @property
    def ptx_sms(self) -> tuple[int, ...]:
        return tuple(sorted({chosen.ptx_sm for chosen in self.sources if chosen.ptx_sm is not None}))


def compile_package(
    package_dir: Path,
    *,
    sms: Sequence[int] | Literal["all"] = "all",
    build_dir: Path,
    jobs: int | None = None,
    machine_code: bool = True,
    console: Console | None = None,
) -> BuildReport:
    """Build `package_dir`/libnormgate.so and say what each kernel needs.

    sms: SM numbers out of the package's targets. build_dir: keeps objects between builds, so a second
    build compiles only what changed; one package each. jobs: compilers at a time, by default ninja's
    choice. machine_code: False for PTX alone, of each source's newest target; only later chips run it.
    console: where progress is shown, None for silence.

    The library is replaced whole, and only by one that passed: it stays as it was when a compiler fails
    (ToolError) or a function spills registers or keeps a stack frame that its source does not allow
    (CheckFailed). ToolError also for a missing tool or an SM that the package or nvcc does not know;
    CheckFailed for a package that is not whole.
    """
    started = time.monotonic()
    package_dir, build_dir = package_dir.absolute(), build_dir.absolute()
    toolkit, ninja, host = find_toolkit(), find_ninja(), host_compiler()
    with locked(package_dir):
        manifest = load_manifest(package_dir)
        selection = _select(manifest, sms, machine_code)
        toolkit.require(selection.sms)
        _require_files(manifest, package_dir)
        with os_errors(build_dir):
            build_dir.mkdir(parents=True, exist_ok=True)
            torch = _torch_paths(build_dir) if any(source.torch for source in manifest.sources) else None
            text = _ninja_file(selection, package_dir, toolkit, host, torch)
            replace_whole(build_dir / "build.ninja", text.encode())
        compiled = _run_ninja(ninja, build_dir, jobs, console)
        rows, said = _collect(selection, build_dir)
        _require_fitting(selection, rows)
        stamp = {
            "manifest": sha256((package_dir / NAME).read_bytes()),
            "sms": selection.machine_code_sms,
            "ptx_sms": selection.ptx_sms,
            "nvcc": toolkit.version,
            "torch": torch.version if torch else None,
            "library": sha256((build_dir / LIBRARY).read_bytes()),
        }
        with os_errors(package_dir):
            _install(build_dir / LIBRARY, package_dir / LIBRARY)
            replace_whole(package_dir / STAMP, (json.dumps(stamp, indent=1) + "\n").encode())
    seconds = time.monotonic() - started
    return BuildReport(
        package_dir / LIBRARY,
        selection.machine_code_sms,
        selection.ptx_sms,
        tuple(rows),
        compiled,
        tuple(said),
        seconds,
    )


def reported(package_dir: Path, build_dir: Path) -> list[Row]:
    """What each function of the package needs, as the compilers said when it was built in `build_dir`; empty where it
    was not built, or something else was since.
    """
    try:
        stamp = json.loads((package_dir / STAMP).read_bytes())
        if stamp["manifest"] != sha256((package_dir / NAME).read_bytes()):
            return []
        selection = _select(load_manifest(package_dir), stamp["sms"] or stamp["ptx_sms"], bool(stamp["sms"]))
        return _collect(selection, build_dir)[0]
    except (OSError, ValueError, LookupError):
        return []


def _select(manifest: Manifest, sms: Sequence[int] | Literal["all"], machine_code: bool = True) -> _Selection:
    targets = {sm for source in manifest.sources for sm in source.sm_targets}
    wanted = targets if sms == "all" else set(sms)
    if strange := sorted(wanted - targets):
        raise ToolError(
            f"the package has no kernel for sm_{strange[0]}; its targets are "
            f"{','.join(map(str, sorted(targets)))}: choose among them with --sm, or add it to "
            f"sm_targets of a spec and: {GENERATE}"
        )
    if not wanted:
        raise ToolError(f"no SM to compile for: the package has no kernels, or --sm names none; try: {GENERATE}")
    kernel_targets = {
        str(source_path(name, group.sm_targets[0])): {sm for every in kernel.groups for sm in every.sm_targets}
        for name, kernel in manifest.kernels.items()
        for group in kernel.groups
    }
    chosen = []
    for source in manifest.sources:
        if not _is_cuda(source):
            chosen.append(_Chosen(source))
        elif not (own := tuple(sorted(wanted & set(source.sm_targets)))):
            continue
        elif not machine_code:
            chosen.append(_Chosen(source, (), own[-1]))
        else:
            # PTX of the newest target of each kernel, not of the package: it is what newer chips run, and a
            # kernel may leave the package's newest target out. The look-up in dispatch.cpp knows it so.
            newest = max(wanted & kernel_targets.get(source.path, set(own)))
            chosen.append(_Chosen(source, own, newest if newest in own else None))
    return _Selection(tuple(chosen), tuple(sorted(wanted)))


def _require_files(manifest: Manifest, package_dir: Path) -> None:
    """Headers too: a compiler names one missing file and no way to mend it."""
    missing = [path for path in manifest.outputs if path.startswith("csrc/") and not (package_dir / path).is_file()]
    missing += [
        source.path
        for source in manifest.sources
        if source.path not in missing and not (package_dir / source.path).is_file()
    ]
    if missing:
        raise CheckFailed(
            "\n".join([*(f"{package_dir / path}: missing" for path in missing), f"write it anew: {GENERATE}"])
        )


def _torch_paths(build_dir: Path) -> _TorchPaths:
    """Where torch's headers and libraries are. Importing torch takes seconds, so the answer is kept in
    build_dir.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ToolError("torch is missing, whose headers the binding is compiled with: pip install torch")
    version = importlib.metadata.version("torch")
    cache = build_dir / "torch.json"
    key = [spec.origin, version]
    if cache.is_file():
        known = json.loads(cache.read_text(encoding="utf-8"))
        if known["key"] == key:
            return _TorchPaths(tuple(known["include"]), tuple(known["lib"]), version)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about a missing NumPy, which nothing here needs
        from torch.utils.cpp_extension import include_paths, library_paths

    paths = _TorchPaths(tuple(include_paths()), tuple(library_paths()), version)
    replace_whole(cache, json.dumps({"key": key, "include": paths.include, "lib": paths.lib}).encode())
    return paths


def _ninja_file(
    selection: _Selection, package_dir: Path, toolkit: Toolkit, host: Sequence[str], torch: _TorchPaths | None
) -> str:
    """The text of build.ninja. All of a step's flags are in its command, which ninja compares with the last
    run's.
    """
    csrc = f"-I{package_dir / 'csrc' / 'include'}"
    nvcc = [
        *_OPTIMIZE, f"-ccbin={_binary(host)}", "-Xptxas=-v", "-Xfatbin=-compress-all",
        "-Xcompiler=-fPIC", "-Xcompiler=-fvisibility=hidden", "-Xcompiler=-Wall", csrc,
    ]  # fmt: skip
    cxx = [
        *_OPTIMIZE, "-fPIC", "-fvisibility=hidden", "-Wall", csrc, "-isystem", str(toolkit.include),
        *(f"-DNORMGATE_SM_{sm}=1" for sm in selection.sms),
    ]  # fmt: skip
    with_torch = [
        *_TORCH_DEFINES,
        *(word for path in (torch.include if torch else ()) for word in ("-isystem", path)),
    ]
    lines = [_RULES]
    objects = []
    for chosen in selection.sources:
        source = chosen.source
        if _is_cuda(source):
            # The plain PTX of an accelerated source leaves functions out, and so has constants that nothing refers to.
            quiet = ["-diag-suppress=177"] if source.accelerated and chosen.ptx_sm else []
            compiler, flags = (
                [str(toolkit.nvcc)],
                [*nvcc, *quiet, *gencode(chosen.sms, chosen.ptx_sm, accelerated=source.accelerated)],
            )
        else:
            compiler, flags = [*host], [*cxx, *(with_torch if source.torch else ())]
        target = _object(source)
        objects.append(target)
        lines += _step(
            "compile",
            [target],
            [package_dir / source.path],
            [f"{target}.log"],
            compiler=_words(compiler),
            flags=_words(flags),
            source=source.path,
        )
    libs = [f"-L{toolkit.lib}", *_CUDA_LIBS]
    if torch:
        libs = [*(f"-L{path}" for path in torch.lib), *_TORCH_LIBS, *libs]
    # -z defs: what the library needs and no linked library has is an error here, not where it is loaded.
    link = ["-shared", "-Wl,-z,defs", "-Wl,--exclude-libs,ALL"]
    lines += _step("link", [LIBRARY], objects, [], compiler=_words(host), flags=_words(link), libs=_words(libs))
    return "\n".join(lines)


def _step(rule: str, outputs: list[str], inputs: Iterable[str | Path], side: list[str], **variables: str) -> list[str]:
    def paths(values: Iterable[str | Path]) -> str:
        return " ".join(re.sub(r"([$ :])", r"$\1", str(value)) for value in values)

    also = f" | {paths(side)}" if side else ""
    return [
        f"build {paths(outputs)}{also}: {rule} {paths(inputs)}",
        *(f"  {k} = {v}" for k, v in variables.items()),
        "",
    ]


def _words(words: Iterable[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def _binary(command: Sequence[str]) -> str:
    """The compiler itself out of a command like `ccache g++ -m64`: nvcc takes a program, not a command."""
    program = [word for word in command if not word.startswith("-")][-1]
    return shutil.which(program) or program


def _run_ninja(ninja: Path, build_dir: Path, jobs: int | None, console: Console | None) -> int:
    """Run ninja and show how far it is; the number of steps it ran. Raises ToolError with a failed compiler's words."""
    command = [str(ninja), *(["-j", str(jobs)] if jobs else [])]
    env = {**os.environ, "NINJA_STATUS": "[%f/%t] "}
    failed: list[str] = []
    done = 0
    with _progress(console) as show, subprocess.Popen(
        command, cwd=build_dir, env=env, text=True, encoding="utf-8", errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=_die_with_parent,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in map(str.rstrip, process.stdout):
            if match := re.match(r"\[(\d+)/(\d+)\] (.*)", line):
                done = int(match.group(1))
                show(done, int(match.group(2)), match.group(3))
            else:
                failed.append(line)
    if process.returncode:
        # After each FAILED line ninja repeats the whole command, which drowns what the compiler says.
        before = ["", *failed]
        shown = [line for index, line in enumerate(failed) if not before[index].startswith("FAILED:")]
        again = shlex.join([str(ninja), "-C", str(build_dir), "-v"])
        raise ToolError("\n".join(["compiling failed:", *shown, f"to see the commands: {again}"]))
    return done


_LIBC = ctypes.CDLL(None)  # found before a child begins, which may not wait for a lock of another thread


def _die_with_parent() -> None:
    """Have the system end ninja, which ends its compilers, when the build is killed: its lock is free from then on."""
    _LIBC.prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG (linux/prctl.h)


@contextmanager
def _progress(console: Console | None) -> Iterator[Callable[[int, int, str], None]]:
    """A function that shows (done, total, what): a bar on a terminal, a line a step in a pipe, nothing
    without console.
    """
    if console is None:
        yield lambda done, total, what: None
    elif not console.is_terminal:
        yield lambda done, total, what: console.print(
            f"[{done}/{total}] {what}", markup=False, highlight=False, soft_wrap=True
        )
    else:
        with terminal.bar(console) as progress:
            task = progress.add_task("compiling", total=None)
            yield lambda done, total, what: progress.update(task, completed=done, total=total, description=what)


def _collect(selection: _Selection, build_dir: Path) -> tuple[list[Row], list[str]]:
    """The rows of all kernels, sources in the manifest's order, functions in the source's; and warnings."""
    seconds = _seconds(build_dir / ".ninja_log")
    rows: list[Row] = []
    said: list[str] = []
    for source in (chosen.source for chosen in selection.sources):
        target = _object(source)
        usages, others = parse((build_dir / f"{target}.log").read_text(encoding="utf-8", errors="replace"))
        said += others
        order = {name: index for index, name in enumerate(source.functions)}

        def place(usage: Usage, order: dict[str, int] = order) -> tuple[int, str, int]:
            return order.get(usage.function, len(order)), usage.function, usage.sm

        size = (build_dir / target).stat().st_size
        rows += [Row(usage, source.path, size, seconds.get(target, 0.0)) for usage in sorted(usages, key=place)]
    return rows, said


def _seconds(log: Path) -> dict[str, float]:
    """Seconds that each output took when it was last made, by ninja's log: start, end (ms), mtime, output,
    hash.
    """
    entries = (line.split("\t") for line in log.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {entry[3]: (int(entry[1]) - int(entry[0])) / 1000 for entry in entries}


def _require_fitting(selection: _Selection, rows: Sequence[Row]) -> None:
    strict = {chosen.source.path for chosen in selection.sources if not chosen.source.allow_spills}
    of_strict = [row for row in rows if row.source in strict]
    if problems := spilling(of_strict):
        functions = dict.fromkeys(row.usage.function for row in of_strict if row.usage.spill or row.usage.stack)
        mend = f"{LIBRARY} was not replaced; choose smaller tiles, or allow_spills: true in the spec"
        raise Spilled("\n".join([*problems, mend]), list(functions))
    reported = {(row.source, row.usage.function, row.usage.sm) for row in rows}
    expected = [
        (chosen.source.path, name, sm)
        for chosen in selection.sources
        for name in chosen.source.functions
        for sm in chosen.sms
    ]
    if absent := [key for key in expected if key not in reported]:
        problems = [f"{path}: has no kernel {name} for sm_{sm}" for path, name, sm in absent]
        raise CheckFailed(
            "\n".join([*problems, f"the manifest and the sources do not agree; write both anew: {GENERATE}"])
        )


def _install(built: Path, library: Path) -> None:
    """Put the library in place whole; copy2 keeps the time stamp, by which the next build sees that it is the
    same.
    """
    if library.is_file() and filecmp.cmp(built, library):
        return
    part = library.with_name(library.name + ".normgate-tmp")
    try:
        shutil.copy2(built, part)
        os.replace(part, library)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _object(source: Source) -> str:
    return f"obj/{source.path}.o"


def _is_cuda(source: Source) -> bool:
    return source.path.endswith(".cu")
