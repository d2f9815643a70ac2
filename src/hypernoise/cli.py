"""The command line: one table of subcommands, each a dataclass whose fields are its flags."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module

from hypernoise.errors import InputError, out_of_memory, renamed_flag, unknown
from hypernoise.version import __version__
from hypernoise.waiting import wait_passively


@dataclass(frozen=True)
class Command:
    """Where a subcommand's dataclass is, and its line in --help."""

    module: str
    name: str
    line: str


COMMANDS = {
    "quickstart": Command("quickstart", "Quickstart", "train on the embedded generator, judge, show before and after"),
    "train": Command("train", "Train", "train a noise hypernetwork from a recipe"),
    "plan": Command("plan", "Plan", "parameters, memory and arithmetic of a recipe, before anything is downloaded"),
    "watch": Command("watch", "Watch", "where a training run is, and its curves as a page"),
    "generate": Command("generate", "Generate", "draw pictures, with or without an adapter"),
    "compare": Command("compare", "Compare", "compare ways to spend compute, on the same prompts and noises"),
    "evaluate": Command("evaluate", "Evaluate", "measure a generator, with and without adapters"),
    "prompts": Command("prompts", "Prompts", "write a benchmark's prompts to a file"),
    "diagnose": Command("diagnose", "Diagnose", "what an adapter does to the noise: KL, Lipschitz constant, prompts"),
}

TOO_LITTLE_MEMORY = (
    "out of memory: draw smaller or fewer pictures at once (a lower batch_size, height or width, decode_slice: 1), set "
    "text_encoders: offload, or take another device or mixed_precision (hypernoise plan says what a recipe takes)"
)

USAGE = "usage: hypernoise COMMAND [flags]      (hypernoise COMMAND --help explains its flags)\n\n" + "\n".join(
    f"  {name:<12}{command.line}" for name, command in COMMANDS.items()
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Exit codes: 0 done; 2 wrong input, said in one line; 130 interrupted, checkpoint saved."""
    arguments = sys.argv[1:] if arguments is None else arguments
    wait_passively()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    try:
        if arguments[0] not in COMMANDS:
            raise unknown("command", arguments[0], COMMANDS)
        renamed_flag(arguments)
        entry = COMMANDS[arguments[0]]
        command = getattr(import_module(f"hypernoise.commands.{entry.module}"), entry.name)
        return command.parse(arguments[1:]).run()
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
