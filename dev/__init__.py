"""How the weights that ship were made; nothing in the package imports it."""

from hypernoise.quiet import wait_passively

wait_passively()  # before anything here imports torch
