"""The command line: one table of subcommands, each a dataclass whose fields are its flags."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from importlib import import_module

from hypernoise.errors import InputError, out_of_memory, unknown
from hypernoise.quiet import wait_passively
from hypernoise.version import __version__

COMMANDS = {  # each is a module of `commands` with a dataclass of that name, and its line in --help
    "quickstart": "train on the embedded generator, judge, show before and after",
    "train": "train a noise hypernetwork; --dry-run: print memory and cost",
    "generate": "draw pictures, with or without an adapter",
    "evaluate": "compare methods on a benchmark, with the same prompts and noises",
    "score": "measure existing pictures: rewards, GenEval, diversity",
    "diagnose": "show what an adapter does to the noise: KL, Lipschitz constant, prompts",
    "app": "open a browser page: plain and improved pictures from the same noise",
}

TOO_LITTLE_MEMORY = (
    "out of memory: train with --fit auto, which chooses settings that fit; draw smaller or fewer pictures at once (a "
    "lower batch_size, height or width, memory.decode_slice: 1), set memory.text_encoders: offload, or use another "
    "device or mixed_precision (hypernoise train --dry-run shows what a recipe needs)"
)

USAGE = "usage: hypernoise COMMAND [flags]      (hypernoise COMMAND --help explains its flags)\n\n" + "\n".join(
    f"  {name:<12}{line}" for name, line in COMMANDS.items()
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Exit codes: 0 done; 2 wrong input, with a one-line message; 130 interrupted, checkpoint saved;
    141 broken pipe."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that cannot print every character
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()  # not at exit, where an error is a traceback
    except OSError as error:  # one that no command handles, such as a full disk
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit would fail again
        if isinstance(error, BrokenPipeError):
            return 141
        print(f"hypernoise: {error}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    wait_passively()
    if not arguments or arguments[0] in ("-h", "--help", "--version"):
        print(__version__ if "--version" in arguments[:1] else USAGE)
        return 0
    try:
        for argument in arguments:
            if not argument.isascii() and "\\ud" in ascii(argument):  # bytes that are not UTF-8
                raise InputError(f"{argument} is not UTF-8 text")
        if arguments[0] not in COMMANDS:
            raise unknown("command", arguments[0], COMMANDS)
        from hypernoise.commands.flags import parse

        command = import_module(f"hypernoise.commands.{arguments[0]}")
        cls = getattr(command, arguments[0].capitalize())
        return parse(cls, arguments[1:], prog=f"hypernoise {arguments[0]}").run()
    except KeyboardInterrupt:
        code, line = 130, "interrupted"
    except InputError as error:
        code, line = 2, str(error)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        code, line = 2, TOO_LITTLE_MEMORY
    print(f"hypernoise: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
