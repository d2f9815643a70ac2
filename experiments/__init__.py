"""Experiments that use the package from outside; each module's first line is the command that runs it."""
