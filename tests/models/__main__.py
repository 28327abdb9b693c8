"""`python -m tests.models`: every model's config.json through `add`, generate, compile, and its CPU op against the oracle.

The specs that `add` writes make one package, for kernels are shared by models. What was compiled is kept in --work, and
what was found of a model's op too, for the same commit, so that a run that was interrupted goes on where it was. Writes
the record that docs/coverage.md tells from; exit code 1 for a model that did not come through, and that of `build.py`
where a kernel does not compile.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codegen import build, cli, naming, package, places
from codegen.bench.record import source
from codegen.errors import CheckFailed, NormgateError
from codegen.output import replace_whole
from codegen.problem import Problem
from codegen.spec import RouterSpec, load_spec
from codegen.toolkit import find_toolkit

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
RECORD = ROOT / "docs" / "measured" / "models.json"
_COMMAND = "python -m tests.models"
_OF_OPS = ("logits_error", "weight_error", "ties")


def models() -> dict[str, Path]:
    """The config.json of each model, by name: those of specs/on_demand/ and the eight of specs/."""
    found = [*(DATA / "models").glob("*.json"), *(DATA / "configs").glob("*.json")]
    return {path.stem: path for path in sorted(found, key=lambda path: path.stem) if path.stem != "sources"}


class Run:
    """The outcomes by model, which `found` in the work folder holds as far as they are known."""

    def __init__(self, work: Path, sms: Sequence[int], jobs: int | None) -> None:
        self.work, self.sms, self.jobs = work, tuple(sms), jobs
        self.found = work / "found.json"
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.specs: dict[str, RouterSpec] = {}
        self.library = False
        commit = source(ROOT)
        self.commit = commit.commit + "-dirty" * commit.dirty
        before = json.loads(self.found.read_text(encoding="utf-8")) if self.found.is_file() else {}
        self.known: dict[str, dict[str, Any]] = before["models"] if before.get("commit") == self.commit else {}

    @property
    def package(self) -> Path:
        return self.work / places.PACKAGE

    @property
    def spec_paths(self) -> list[Path]:
        return [self.work / "specs" / f"{name}.yaml" for name in self.specs]

    def add(self, name: str, config: Path) -> None:
        """Write the spec as a user would, and hold it against the committed one."""
        said = json.loads((DATA / "models" / "sources.json").read_text(encoding="utf-8")).get(name, {})
        flags = [word for flag, answer in said.get("answers", {}).items() for word in (f"--{flag}", answer)]
        flags += ["--source", said["source"]] if said.get("source") else []
        written = self.work / "specs" / f"{name}.yaml"
        code = cli.main(["add", str(config), "--name", name, "--out", str(written.parent), "--force", *flags], _COMMAND)
        outcome = self.outcomes[name] = {}
        if code:
            outcome["wrong"] = f"add: exit code {code}"
            return
        spec = self.specs[name] = load_spec(written)
        committed = next(path for path in places.every_spec() if path.stem == name)
        outcome["served"] = "in part" if spec.not_covered else "entirely"
        outcome["missing"] = list(spec.not_covered)
        kernels = (naming.kernel_name(Problem.of(spec).gate_part), naming.kernel_name(Problem.of(spec)))
        outcome["kernels"] = list(dict.fromkeys(kernels))
        outcome |= {key: said for key, said in self.known.get(name, {}).items() if key in _OF_OPS}
        if written.read_bytes() != committed.read_bytes():
            outcome["wrong"] = f"add: not what {places.shown(committed)} says"

    def generate(self) -> None:
        package.generate(self.spec_paths, self.work)

    def compile(self) -> None:
        """The library of all kernels, planned anew where one spills; what each model's functions need."""
        started = time.monotonic()
        rows = build.build_package(self.spec_paths, self.work, sm=",".join(map(str, self.sms)), jobs=self.jobs).rows
        self.library = True
        for name in self.specs:
            outcome = self.outcomes[name]
            usages = [row.usage for row in rows if row.kernel in outcome["kernels"] and row.usage.registers is not None]
            outcome["functions"] = {str(sm): sum(usage.sm == sm for usage in usages) for sm in self.sms}
            outcome["spills"] = sum(usage.spill for usage in usages)
        self.say("all", f"{len(rows)} functions", started)

    def call(self) -> None:
        """The CPU ops, in a process of its own, which imports the package and loads its library; before there is one,
        of the models that have not been tried.
        """
        names = [name for name in self.specs if self.library or _OF_OPS[0] not in self.outcomes[name]]
        command = [sys.executable, "-W", "ignore", "-m", "tests.models.ops", str(self.package), *names]
        started = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                found = json.loads(line)
                name = found.pop("model")
                self.outcomes[name] |= found
                self.say(name, ", ".join(f"{key} {value}" for key, value in found.items()), started)
                started = time.monotonic()
        if process.returncode:
            raise CheckFailed(f"the CPU ops: exit code {process.returncode}")

    def say(self, name: str, what: str, started: float) -> None:
        """A line of progress, and what is known by now into `found`."""
        print(f"{name}: {what} ({time.monotonic() - started:.1f} s)", flush=True)
        self.write()

    def write(self) -> None:
        record = {
            "what": _COMMAND,
            "commit": self.commit,
            "torch": importlib.metadata.version("torch"),
            "nvcc": find_toolkit().version,
            "sms": self.sms,
            "library": "loaded" if self.library else "not linked",
            "models": self.outcomes,
        }
        replace_whole(self.found, f"{json.dumps(record, indent=1)}\n".encode())


def main() -> int:
    parser = argparse.ArgumentParser(prog=_COMMAND, description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "models", help="what is kept between runs")
    parser.add_argument("--models", nargs="+", choices=models(), metavar="NAME", help="only these; nothing is recorded")
    parser.add_argument("--sm", default="90,120", help="none: nothing is compiled")
    parser.add_argument("--jobs", type=int, help="compilers at a time")
    parser.add_argument("--record", type=Path, help="[default: docs/measured/models.json, of a run of all]")
    given = parser.parse_args()
    sms = [] if given.sm == "none" else [int(sm) for sm in given.sm.split(",")]
    record = given.record or (RECORD if not given.models and sms else None)
    run = Run(given.work.absolute(), sms, given.jobs)
    for name, config in models().items():
        if not given.models or name in given.models:
            run.add(name, config)
    run.generate()
    run.call()  # what is wrong here is known before the long compiling
    if sms:
        run.compile()
        run.call()
    run.write()
    if record:
        replace_whole(record, run.found.read_bytes())
    wrong = {name: outcome["wrong"] for name, outcome in run.outcomes.items() if "wrong" in outcome}
    for name, what in wrong.items():
        print(f"{name}: {what}", file=sys.stderr)
    entirely = sum(outcome.get("served") == "entirely" for outcome in run.outcomes.values())
    print(f"{len(run.outcomes)} models, {entirely} served entirely, {len(wrong)} did not come through")
    return int(bool(wrong))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NormgateError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
