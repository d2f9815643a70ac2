"""Measurements of speed and memory; each module's head has its command."""

from hypernoise.errors import print_uncaught

print_uncaught()
