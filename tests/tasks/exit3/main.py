"""Ends with exit code 3, as a program does that found its input wanting."""

import sys

print("about to fail, on purpose", file=sys.stderr)
sys.exit(3)
