"""What commands share: what they write, and how those with others inside list them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypernoise.errors import InputError, unknown
from hypernoise.files import write_json, write_text
from hypernoise.version import __version__

if TYPE_CHECKING:
    from hypernoise.evaluation.page import Table
    from hypernoise.rewards.ensemble import WeightedSum

TOLD = 10  # broken pictures that are named on stderr; summary.json has all


def write_summary(
    output: Path, command: str, arguments: Any, device: Any, results: Sequence[Mapping[str, Any]], **more: Any
) -> None:
    """`output`/summary.json: what was run, with what, its result rows, and what `more` the command has to say."""
    fields = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(arguments)}
    computed = {}
    if "mixed_precision" in fields:
        import torch

        from hypernoise.precision import resolve

        computed["mixed_precision"] = resolve(fields["mixed_precision"], torch.device(device)).name
    summary = {
        "command": command,
        "version": __version__,
        "seed": fields.get("seed"),
        "device": str(device),
        **computed,
        "arguments": {name: _plain(value) for name, value in fields.items()},
        **more,
        "results": list(results),
    }
    write_json(output / "summary.json", summary)


def _plain(value: Any) -> Any:
    """An argument as JSON has it: a path as text, a group of settings as an object."""
    if isinstance(value, Path):
        return str(value)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def write_report(
    arguments: Any, command: str, rows: Sequence[Mapping[str, Any]], examples: Sequence[Any], **about: str
) -> None:
    """`--report`: report.html beside the summary; its place is said on stderr."""
    from hypernoise.evaluation.page import report

    told = _told(command, **{"generator": arguments.generator, **about})
    _write_page(arguments.output, report(told["command"], told, rows, examples))


def write_tables(output: Path, command: str, found: Sequence[Table], **about: str) -> None:
    """`--report` of a command whose results are tables alone."""
    from hypernoise.evaluation.page import tables

    told = _told(command, **about)
    _write_page(output, tables(told["command"], told, found))


def _told(command: str, **about: str) -> dict[str, str]:
    return {"command": f"hypernoise {command}", **about, "version": __version__}


def _write_page(output: Path, text: str) -> None:
    file = output / "report.html"
    write_text(file, text)
    print(f"report: {file}", file=sys.stderr)


def shard_of(text: str) -> tuple[int, int]:
    """(k, n) of "k/n"; of nothing, this process's number among those that a launcher started, (0, 1) without one.

    Raises:
        InputError: k is not below n.
    """
    if not text:
        from hypernoise.training.processes import launched

        return launched()
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise InputError(f"--shard takes k/n with k below n, such as 0/4, not {text!r}")
    return int(index), int(count)


def tell_cut_prompts(reward: WeightedSum) -> dict[str, int]:
    """How many different prompts each reward has cut to what its text encoder reads, if any; also said on stderr."""
    cut = {name: number for name, number in reward.truncated.items() if number}
    for name, number in cut.items():
        print(
            f"{name}: {number} prompts are longer than its text encoder, and their ends were not scored "
            "(see --long-prompts)",
            file=sys.stderr,
        )
    return cut


def tell_broken(broken: Sequence[Mapping[str, str]]) -> None:
    """Says on stderr which pictures could not be used, and why: the first ten of `broken`, by "name" and "why"."""
    for one in broken[:TOLD]:
        print(f"{one['name']}: {one['why']}", file=sys.stderr)


def left_to_others(number: int, what: str) -> int:
    """Says on stderr that other shards have still to make so many; the exit code of a shard that ends so."""
    print(f"{number} {what} are left to other shards; any of them ends with the table", file=sys.stderr)
    return 0


def parse_within(
    command: str, table: Mapping[str, tuple[str, str]], arguments: list[str], *, kind: str, ask: str
) -> Any:
    """Hands the flags to the command of `table` (name: module and class) that is named first.

    Args:
        kind: what such a name is of; ask: what is said where none is given.
    """
    if not arguments:
        raise InputError(f"{ask}: {', '.join(table)}")
    if arguments[0] in ("-h", "--help"):
        print(_listing(command, table))
        raise SystemExit(0)
    if arguments[0] not in table:
        raise unknown(kind, arguments[0], table)
    return _class_of(*table[arguments[0]]).parse(arguments[1:])


def _listing(command: str, table: Mapping[str, tuple[str, str]]) -> str:
    """A line for each name, from the docstrings."""
    lines = [f"usage: hypernoise {command} NAME [flags]; hypernoise {command} NAME --help has its flags"]
    lines += [f"  {name:<14}{_class_of(*place).__doc__.splitlines()[0]}" for name, place in table.items()]
    return "\n".join(lines)


def _class_of(module: str, name: str) -> Any:
    return getattr(import_module(f"hypernoise.commands.{module}"), name)
