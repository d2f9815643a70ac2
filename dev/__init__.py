"""How the weights that ship were made; nothing in the package imports it."""

import sys

from hypernoise.errors import InputError
from hypernoise.quiet import wait_passively

wait_passively()  # before anything here imports torch

shown = sys.excepthook
sys.excepthook = lambda kind, *error: print(error[0], file=sys.stderr) if kind is InputError else shown(kind, *error)
