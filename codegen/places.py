"""Where things lie: beside the generator in a checkout, inside it when it is installed."""

from __future__ import annotations

from pathlib import Path

from .errors import BadInput, Problem

PACKAGE = "normgate"
"""The generated package's folder name, in whatever folder --out names."""

_GENERATOR = Path(__file__).resolve().parent
# Packages of the generator that decide nothing of what is generated.
_DECIDE_NOTHING = ("bench", "cli", "report")


def home() -> Path:
    """The root of the checkout, or the current folder when installed: where specs/ and generated/ are written."""
    return Path.cwd() if (_GENERATOR / "specs").is_dir() else _GENERATOR.parent


def specs_folder() -> Path:
    """Where specs lie: those of `home`; when installed and there are none here, the shipped ones."""
    here, shipped = home() / "specs", _GENERATOR / "specs"
    return here if here.is_dir() or not shipped.is_dir() else shipped


def templates_folder() -> Path:
    """Beside the generator in a checkout, inside it when installed."""
    installed = _GENERATOR / "templates"
    return installed if installed.is_dir() else _GENERATOR.parent / "templates"


def tuned_folder() -> Path:
    """Where tuned tables lie: with the specs."""
    return specs_folder() / "tuned"


def all_specs() -> tuple[Path, ...]:
    """Every spec, by name. BadInput when there is none."""
    found = tuple(sorted(specs_folder().glob("*.yaml")))
    if not found:
        raise BadInput(
            [Problem(str(specs_folder()), None, "holds no *.yaml; write one: python build.py add CONFIG.json")]
        )
    return found


def every_spec() -> tuple[Path, ...]:
    """Those and the ones that are generated and built on demand only, of specs/on_demand/."""
    return (*all_specs(), *sorted((specs_folder() / "on_demand").glob("*.yaml")))


def generator_files() -> dict[str, Path]:
    """The generator's own Python files, by their path in it: its rooms' and its packages', but those of packages that
    decide nothing of what is generated.
    """
    packages = [found.parent for found in _GENERATOR.glob("*/__init__.py") if found.parent.name not in _DECIDE_NOTHING]
    found = [*_GENERATOR.glob("*.py"), *(path for package in packages for path in package.rglob("*.py"))]
    return {path.relative_to(_GENERATOR).as_posix(): path for path in sorted(found)}


def shown(path: Path) -> str:
    """`path` as messages have it: relative to the current folder where it is inside."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


def build_folder(out: Path) -> Path:
    """Objects and stamps of the package in `out`: nothing there is worth keeping."""
    return out / "build"
