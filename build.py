"""The one door: `python build.py --help`."""

import sys

from codegen.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python build.py"))
