"""The command line: one table of subcommands, each a dataclass whose fields are its flags."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from importlib import import_module

from hypernoise.errors import InputError, out_of_memory, unknown
from hypernoise.version import __version__
from hypernoise.waiting import wait_passively

COMMANDS = {  # each is a module of `commands` with a dataclass of that name, and its line in --help
    "quickstart": "train on the embedded generator, judge, show before and after",
    "train": "train a noise hypernetwork; --dry-run: what it will take",
    "generate": "draw pictures, with or without an adapter",
    "evaluate": "compare methods on the same prompts and noises, by a benchmark",
    "score": "measure pictures that are there: rewards, GenEval, diversity",
    "diagnose": "what an adapter does to the noise: KL, Lipschitz constant, prompts",
    "app": "a page in the browser: plain and improved pictures from the same noise",
}

TOO_LITTLE_MEMORY = (
    "out of memory: draw smaller or fewer pictures at once (a lower batch_size, height or width, memory.decode_slice: "
    "1), set memory.text_encoders: offload, or take another device or mixed_precision (hypernoise train --dry-run says "
    "what a recipe takes)"
)

USAGE = "usage: hypernoise COMMAND [flags]      (hypernoise COMMAND --help explains its flags)\n\n" + "\n".join(
    f"  {name:<12}{line}" for name, line in COMMANDS.items()
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Exit codes: 0 done; 2 wrong input, said in one line; 130 interrupted, checkpoint saved; 141 the
    reader of what is printed has left."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of a terminal that does not know every character
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()  # not at exit, where an error is a traceback
    except OSError as error:  # where commands do not look for one: it is the machine's
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit would fail again
        if isinstance(error, BrokenPipeError):
            return 141
        print(f"hypernoise: {error}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    wait_passively()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    try:
        for argument in arguments:
            if not argument.isascii() and "\\ud" in ascii(argument):  # bytes that are not UTF-8
                raise InputError(f"{argument} is not UTF-8 text")
        if arguments[0] not in COMMANDS:
            raise unknown("command", arguments[0], COMMANDS)
        from hypernoise.commands.flags import parse

        command = import_module(f"hypernoise.commands.{arguments[0]}")
        return parse(getattr(command, arguments[0].capitalize()), arguments[1:]).run()
    except InputError as error:
        print(f"hypernoise: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        print(f"hypernoise: {TOO_LITTLE_MEMORY}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hypernoise: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
