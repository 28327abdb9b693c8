"""`build.py generate` killed at a random moment: the package is the old one or the new one, and the next run mends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from random import Random

from codegen import output, package

from .inputs import ROOT, SPECS
from .tries import Failure

_LONGEST_RUN_S = 3.0  # some kills come after the end


class Kills:
    """Two specs by turns into one folder, in processes that are killed."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.folder = self.out / "normgate"
        self.specs = [folder / f"{name}.yaml" for name in ("deepseek-v4-pro", "gpt-oss-120b")]
        for path in self.specs:
            path.write_text(next(text for text in SPECS if f"name: {path.stem}\n" in text))
        self.files = [package.files_of([path]) for path in self.specs]
        self._generate(0).wait()
        if self._state() != 0:
            raise Failure("generate did not write what it should")

    def kill_one(self, random: Random) -> str:
        """Generate what is not there, kill it; "old", "new" or "finished": what is there after it, whole.

        Every other kill waits until the new folder is being made, or most would come before or after it.
        """
        before = self._state()
        assert before is not None
        process = self._generate(1 - before)
        if random.random() < 0.5:
            time.sleep(random.uniform(0, _LONGEST_RUN_S))
        else:
            stage = self.folder.with_name(f".{self.folder.name}.normgate-tmp")
            while not stage.exists() and process.poll() is None:
                time.sleep(0.0005)
            time.sleep(random.expovariate(1 / 0.01))
        process.kill()
        code = process.wait()
        after = self._state()
        if after is None:
            raise Failure(f"a mix: {output.diff(self.files[before], self.folder).lines()[:5]}")
        if code == 0 and after == before:
            raise Failure("generate ended well, and the old package is there")
        return "finished" if code == 0 else "old" if after == before else "new"

    def mend(self) -> None:
        """After the last kill a whole run leaves nothing but the package and its lock."""
        state = self._state()
        assert state is not None
        if self._generate(1 - state).wait() or self._state() != 1 - state:
            raise Failure("the run after a kill does not write the package")
        left = {path.name for path in self.out.iterdir()} - {"normgate", ".normgate.lock", "build"}
        if left:
            raise Failure(f"left behind: {left}")

    def _state(self) -> int | None:
        return next((n for n, files in enumerate(self.files) if output.diff(files, self.folder).fresh), None)

    def _generate(self, which: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "build.py", "generate", "--spec", str(self.specs[which]), "--out", str(self.out)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
