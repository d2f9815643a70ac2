"""Rules of the package: imports between its folders point one way, and it stays small."""

import ast
import re
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

from hypernoise.cli import COMMANDS
from hypernoise.commands.flags import flags_of

SOURCE = Path(__file__).parents[1] / "src" / "hypernoise"

LINES = 12_500  # of the Python in src/hypernoise
CORE_LINES = 6_200  # of its core: objective, noise, generators, rewards, training

FLOORS = (  # a room may import rooms of its own floor, as long as none comes back, and of those below
    {"errors", "files", "version", "precision", "quiet", "settings"},
    {"objective"},
    {"noise", "generators", "rewards"},
    {"adapters", "pipeline", "prompts"},
    {"training", "methods", "diagnostics"},
    {"evaluation"},
    {"scenes", "plan", "model_card"},
    {"commands", "cli", "__init__", "__main__"},
)


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts)


def imports_of(file: Path) -> set[str]:
    """The modules that a file imports anywhere in it; `from hypernoise import x` is hypernoise.x."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module == "hypernoise"
            found |= {f"hypernoise.{alias.name}" for alias in node.names} if whole else {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


FILES = {module_of(file): file for file in sorted(SOURCE.rglob("*.py"))}
ALL_IMPORTS = {module: imports_of(file) for module, file in FILES.items()}
IMPORTS = {
    module: {name.removeprefix("hypernoise.") for name in names if name.startswith("hypernoise.")}
    for module, names in ALL_IMPORTS.items()
}
ARROWS = {(module, other) for module, others in IMPORTS.items() for other in others}


def room(module: str) -> str:
    return module.split(".")[0]


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def test_no_arrow_points_up():
    assert {arrow for arrow in ARROWS if floor(arrow[1]) > floor(arrow[0])} == set()


def test_no_circle_of_modules_or_rooms():
    rooms: dict[str, set[str]] = {}
    for module, other in ARROWS:
        if room(module) != room(other):
            rooms.setdefault(room(module), set()).add(room(other))
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the circle
    TopologicalSorter(rooms).prepare()


def test_methods_train_in_one_place_only():
    assert {module for module, other in ARROWS if room(module) == "methods" and room(other) == "training"} <= {
        "methods.finetune"
    }


def test_only_commands_know_the_scenes():
    assert {room(module) for module, other in ARROWS if room(other) == "scenes"} <= {"scenes", "commands"}


def test_the_package_imports_nothing_that_is_outside_it():
    outside = {"experiments", "dev", "tests", "benchmarks"}
    assert {(module, name) for module, names in ALL_IMPORTS.items() for name in names if room(name) in outside} == set()


def test_no_room_asks_what_class_a_generator_or_reward_of_another_has():
    concrete = {"DiffusionGenerator", "ModuleGenerator", "WeightedSum", "NetworkReward"}
    own = {"generators", "rewards"}
    asked = {
        (module, name.id)
        for module, file in FILES.items()
        if room(module) not in own
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "isinstance"
        for name in ast.walk(call.args[1])
        if isinstance(name, ast.Name) and name.id in concrete
    }
    assert asked == set()


def test_every_option_is_used():
    """As a flag, an argument, a key or a name in quotes, in a test, recipe, experiment or benchmark."""
    root = SOURCE.parents[1]
    files = [
        file for folder in ("tests", "recipes", "experiments", "benchmarks") for file in (root / folder).rglob("*")
    ]
    text = "\n".join(file.read_text() for file in files if file.suffix in {".py", ".yaml"})
    text = text.replace("-", "_")
    words = {
        name
        for way in (r"__(\w+)", r"(\w+)=", r"(\w+):", r"[\"'](\w+)[\"']", r"\.(\w+)")
        for name in re.findall(way, text)
    }
    for name in COMMANDS:
        options = flags_of(getattr(import_module(f"hypernoise.commands.{name}"), name.capitalize()))
        assert {option for option, *_ in options if option.rpartition(".")[2] not in words} == set(), name


def lines(modules) -> int:
    return sum(len(FILES[module].read_text().splitlines()) for module in modules)


def test_the_package_stays_small():
    core = {"objective", "noise", "generators", "rewards", "training"}
    assert lines(FILES) <= LINES
    assert lines(module for module in FILES if room(module) in core) <= CORE_LINES
