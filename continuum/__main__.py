"""`python -m continuum` is a worker; with arguments it is the command line."""

import sys

from continuum.cli import main

main(sys.argv[1:] or ["worker"])
