"""Measurements of speed and memory; each module's head has its command."""

import sys

from hypernoise.errors import InputError

shown = sys.excepthook
sys.excepthook = lambda kind, *error: print(error[0], file=sys.stderr) if kind is InputError else shown(kind, *error)
