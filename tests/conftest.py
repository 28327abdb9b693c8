"""Makes ``import normgate`` work: as generated or, before that, its plain files with example tables."""

import atexit
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def package_folder() -> Path:
    generated = ROOT / "generated"
    if (generated / "normgate" / "__init__.py").is_file():
        return generated
    assembled = Path(tempfile.mkdtemp(prefix="normgate-"))
    atexit.register(shutil.rmtree, assembled, ignore_errors=True)
    shutil.copytree(ROOT / "templates" / "package", assembled / "normgate")
    shutil.copy(ROOT / "tests" / "op" / "example_tables.py", assembled / "normgate" / "_tables.py")
    return assembled


sys.path.insert(0, str(package_folder()))
