"""`python -m normgate VERB`, or a vendored copy by its own name: each verb is the module of that name."""

import importlib
import sys

VERBS = {
    "verify": "hold the package's files against its manifest",
    "doctor": "say what runs here, and test it against the reference",
}


def main(arguments: list[str]) -> int:
    """Run one command line; the verb's exit code, 2 where there is no such verb."""
    verb, *rest = arguments or ["--help"]
    if verb in VERBS:
        return int(importlib.import_module(f".{verb}", __package__).main(rest))
    usage = [f"usage: python -m {__package__} VERB", "", *(f"  {name:<8}{does}" for name, does in VERBS.items())]
    if verb in ("-h", "--help"):
        print("\n".join(usage))
        return 0
    print("\n".join([f"no verb {verb!r}", *usage]), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
