"""Whether a plugin is to act: its engine's version, and the switch that turns all of them off."""

import importlib.metadata
import os
import re
import warnings

DISABLE = "NORMGATE_DISABLE"
"""The environment variable that, set to anything but "" and "0", makes plugins do nothing."""


def acts(engine: str, first: tuple[int, ...], last: tuple[int, ...]) -> bool:
    """Whether the installed ``engine`` is of version ``first`` to ``last``, and plugins are not turned off.

    Warns where the version is another one. The engine is not imported.
    """
    if os.environ.get(DISABLE, "0") not in ("", "0"):
        return False
    try:
        version = importlib.metadata.version(engine)
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    release = re.match(r"\d+(\.\d+)*", version)
    numbers = tuple(map(int, release.group().split("."))) if release else ()
    if first <= numbers and numbers[: len(last)] <= last:
        return True
    supported = f"{'.'.join(map(str, first))} to {'.'.join(map(str, last))}"
    warnings.warn(
        f"normgate leaves {engine} alone: its version is {version}, the plugin knows {supported}; "
        f"{DISABLE}=1 silences this",
        RuntimeWarning,
        stacklevel=3,
    )
    return False
