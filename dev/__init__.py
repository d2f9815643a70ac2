"""How the weights that ship were made; nothing in the package imports it."""

from hypernoise.errors import print_uncaught
from hypernoise.quiet import wait_passively

wait_passively()  # before anything here imports torch
print_uncaught()
