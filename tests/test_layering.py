"""The shape of the package, read from its sources: who imports whom, and how long files are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "afm_scale"

Sources = dict[str, str]
"""Source text by module name, such as 'afm_scale.core.errors'; a package goes by its own name."""

MAY_IMPORT = {
    "core": set(),
    "ops": {"core"},
    "flow": {"core"},
    "models": {"core", "ops"},
    "data": {"core"},
    "packing": {"core", "data"},
    "parallel": {"core", "ops"},
    "sampling": {"core", "flow", "data.source"},
    "objectives": {"core", "flow"},
    "checkpoint": {"core"},
    "evaluation": {"core", "flow", "models", "data", "packing", "parallel", "sampling"},
    "estimate": {"core"},
    # Of the packages it drives, the loop knows the protocols alone, and how ranks agree on an error.
    "train": {
        "core", "ops", "objectives.objective", "parallel.plan", "parallel.optim", "parallel.agreement",
        "parallel.flight", "data.source", "checkpoint.falling_back", "checkpoint.manager", "checkpoint.manifest",
        "checkpoint.names", "checkpoint.tensors", "sampling", "estimate.devices",
    },
    "run": {
        "core", "ops", "flow", "models", "data", "packing", "parallel", "sampling", "objectives", "checkpoint",
        "evaluation", "estimate", "train",
    },
    "commands": {
        "core", "ops", "flow", "models", "data", "packing", "parallel", "sampling", "objectives", "checkpoint",
        "evaluation", "estimate", "train", "run", "benchmarks",
    },
    "benchmarks": {
        "core", "ops", "flow", "models", "data", "packing", "parallel", "sampling", "objectives", "checkpoint",
        "evaluation", "estimate", "train", "run",
    },
    "__main__": {"commands", "core.stopping"},
    "": {"run.model"},  # afm_scale/__init__.py, which imports it when a checkpoint is loaded
}
KNOW_NO_RANKS = {"core", "ops", "flow", "models", "data", "objectives"}
OPTIONAL = {"webdataset", "nvidia", "deepspeed", "megatron", "apex", "wandb", "diffusers", "torch_fidelity",
            "pyarrow", "torchao", "transformers", "triton"}
LATER = {
    "typing.Self", "typing.Never", "typing.assert_never", "typing.assert_type", "typing.LiteralString", "typing.Unpack",
    "typing.NotRequired", "typing.Required", "typing.override", "enum.StrEnum", "contextlib.chdir", "datetime.UTC",
    "itertools.batched",
}
LINES = 300
LINES_OF_LOOP = 150
LINES_OF_OBJECTIVE = 180


def package_sources() -> Sources:
    sources = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return sources


def part_of(module: str) -> str:
    """'train' for 'afm_scale.train.hooks.hook'; an empty string for the package itself."""
    return module.split(".")[1] if "." in module else ""


def imports(module: str, sources: Sources) -> Iterator[tuple[str, int]]:
    """Every module that `module` imports, anywhere in it, by full name, with the line."""
    is_package = any(other.startswith(module + ".") for other in sources)
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                above = parents[:len(parents) - node.level + is_package]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"  # a module of ours, of torch.distributed, or a name in `base`
                yield (inner if inner in sources or inner == "torch.distributed" else base), node.lineno


def arrows_that_point_up(sources: Sources) -> list[str]:
    found = []
    for module in sources:
        part = part_of(module)
        if part not in MAY_IMPORT:
            found.append(f"{module}: {part!r} is not a package of the architecture")
            continue
        for target, line in imports(module, sources):
            top, _, inside = target.partition(".")
            if top == "tools":
                found.append(f"{module}:{line} imports {target}: tools are imported by nothing")
            if top != PACKAGE or part_of(target) == part or target == PACKAGE:
                continue
            allowed = MAY_IMPORT[part]
            if inside.split(".")[0] not in allowed and inside not in allowed:
                found.append(f"{module}:{line} imports {target}; {part} may import {sorted(allowed)}")
    return found


def circles(sources: Sources) -> list[str]:
    """Modules that import each other, directly or by way of others; TYPE_CHECKING hides none.

    Not counted are imports inside of functions, by which a table builds what it names, those of the package's version,
    and in `parallel.kinds` those for types alone: a kind is given the configuration that is made of all kinds.
    """
    targets = {
        module: {
            target for target, line in imports(module, sources)
            if target in sources and target not in (module, PACKAGE)
            and line not in lines_in(source, ast.FunctionDef)
            and not (module.startswith(f"{PACKAGE}.parallel.kinds.") and line in lines_in(source, ast.If))
        }
        for module, source in sources.items()
    }
    reached = {module: {module} for module in sources}
    changed = True
    while changed:
        changed = False
        for module, found in reached.items():
            further = found.union(*(reached[target] for target in targets[module]))
            if further != found:
                reached[module] = further
                changed = True
    in_circles = {
        frozenset(other for other in reached[module] if module in reached[other]) for module in sources
    }
    return [f"a circle of {', '.join(sorted(circle))}" for circle in in_circles if len(circle) > 1]


@cache
def lines_in(source: str, kind: type[ast.stmt]) -> set[int]:
    return {
        line for node in ast.walk(ast.parse(source)) if isinstance(node, kind)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def rooms_in_circles(sources: Sources) -> list[str]:
    """The same of whole rooms."""
    rooms = {part: "" for part in map(part_of, sources) if part}
    for module in sources:
        for target, _ in imports(module, sources):
            if part_of(target) in rooms and part_of(module) in rooms and part_of(target) != part_of(module):
                rooms[part_of(module)] += f"import {PACKAGE}.{part_of(target)}\n"
    return circles({f"{PACKAGE}.{room}": text for room, text in rooms.items()})


def names_of_later_pythons(sources: Sources) -> list[str]:
    """Python 3.10 is supported, whatever these tests run on."""
    return [
        f"{module}:{node.lineno} takes {alias.name} from {node.module}, which Python 3.10 does not have"
        for module, source in sources.items() for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) for alias in node.names
        if f"{node.module}.{alias.name}" in LATER or node.module == "tomllib"
    ]


def commands_that_import_each_other(sources: Sources) -> list[str]:
    """A command is a module with arguments; what two share is in a module without, or below. The table names all."""
    commands = {
        module for module, source in sources.items() if part_of(module) in ("commands", "benchmarks")
        for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "add_arguments"
    }
    return [
        f"{module}:{line} imports {target}, a command: what both need belongs below them"
        for module in sources if module != f"{PACKAGE}.commands.table"
        for target, line in imports(module, sources) if target in commands
    ]


def ranks_where_none_are_known(sources: Sources) -> list[str]:
    found = []
    for module in sources:
        if part_of(module) not in KNOW_NO_RANKS:
            continue
        lines = [line for target, line in imports(module, sources) if f"{target}.".startswith("torch.distributed.")]
        lines += [
            node.lineno for node in ast.walk(ast.parse(sources[module]))
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed"
        ]
        found += [f"{module}:{line} uses torch.distributed" for line in lines]
    return found


def foreign_packages_in_core(sources: Sources) -> list[str]:
    known = sys.stdlib_module_names | {"torch", PACKAGE}
    return [
        f"{module}:{line} imports {target}; core imports the standard library and torch"
        for module in sources if part_of(module) == "core"
        for target, line in imports(module, sources) if target.split(".")[0] not in known
    ]


def optional_packages_out_of_place(sources: Sources) -> list[str]:
    """An optional package belongs at the top of one module, which is imported only when the configuration names it."""
    found = []
    owner: dict[str, str] = {}
    for module, source in sources.items():
        top_lines = {node.lineno for node in ast.parse(source).body}
        for target, line in imports(module, sources):
            name = target.split(".")[0]
            if name not in OPTIONAL:
                continue
            if line not in top_lines:
                found.append(f"{module}:{line} imports {name} below the top of the module")
            if owner.setdefault(name, module) != module:
                found.append(f"{module}:{line} imports {name}, which is the matter of {owner[name]}")
    return found


def import_errors_caught(sources: Sources) -> list[str]:
    return [
        f"{module}:{node.lineno} catches {name.id}; only ops probes for packages"
        for module, source in sources.items() if part_of(module) != "ops"
        for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler) and node.type is not None
        for name in ast.walk(node.type)
        if isinstance(name, ast.Name) and name.id in {"ImportError", "ModuleNotFoundError"}
    ]


def refused_calls(sources: Sources) -> list[str]:
    return [
        f"{module}:{node.lineno} calls {node.func.id}"
        for module, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"eval", "hasattr"}
    ]


def files_too_long(sources: Sources) -> list[str]:
    found = []
    for module, source in sources.items():
        limit = LINES_OF_OBJECTIVE if part_of(module) == "objectives" else LINES
        limit = LINES_OF_LOOP if module == f"{PACKAGE}.train.loop" else limit
        length = len(source.splitlines())
        if length > limit:
            found.append(f"{module} has {length} lines, at most {limit} are wanted: split it where two things live")
    return found


def switches_of_tf32(sources: Sources) -> list[str]:
    names = {"allow_tf32", "fp32_precision", "set_float32_matmul_precision", "get_float32_matmul_precision"}
    return [
        f"{module}:{node.lineno} touches torch's {node.attr}, which is the matter of core.arithmetic"
        for module, source in sources.items() if module != f"{PACKAGE}.core.arithmetic"
        for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and node.attr in names
    ]


def words_past_the_screen(sources: Sources) -> list[str]:
    """What does not go through core/screen.py can end a run by an error of the screen's, or read text as markup."""
    screen, tables = f"{PACKAGE}.core.screen", f"{PACKAGE}.run.tables"
    found = []
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name == "print" and module != screen or name.endswith("Console") and module != tables:
                found.append(f"{module}:{node.lineno} calls {name}")
            if isinstance(node, ast.Attribute) and module != screen:
                if ast.unparse(node) in ("sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"):
                    found.append(f"{module}:{node.lineno} uses {ast.unparse(node)}")
        found += [
            f"{module}:{line} imports {target}" for target, line in imports(module, sources)
            if target.split(".")[0] == "rich" and module != tables
        ]
    return found


CHECKS = [
    arrows_that_point_up, commands_that_import_each_other, circles, rooms_in_circles, names_of_later_pythons,
    ranks_where_none_are_known, foreign_packages_in_core, optional_packages_out_of_place, import_errors_caught,
    refused_calls, files_too_long, switches_of_tf32, words_past_the_screen,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_keeps_its_layers(check):
    found = check(package_sources())
    assert not found, "\n".join(found)


def test_the_whole_package_is_read():
    sources = package_sources()
    assert {"afm_scale", "afm_scale.core.errors", "afm_scale.train.hooks.hook", "afm_scale.parallel"} <= set(sources)
    read = set(imports("afm_scale.parallel.plan", sources))
    assert {"afm_scale.core.schedules", "afm_scale.parallel.optim", "torch"} <= {target for target, _ in read}


OURS = {"afm_scale.parallel": "", "afm_scale.parallel.plan": "", "afm_scale.parallel.ddp": "", "afm_scale.core": ""}
COMMAND = "def add_arguments(parser):\n    pass"
TWO_COMMANDS = {"afm_scale.commands": "", "afm_scale.commands.a": COMMAND, "afm_scale.commands.b": COMMAND}
VIOLATIONS = [
    (arrows_that_point_up, {"afm_scale.core.types": "from ..parallel.plan import Player"}),
    (arrows_that_point_up, {"afm_scale.core.types": "from .. import parallel"}),
    (arrows_that_point_up, {"afm_scale.models.dit": "def f():\n    from afm_scale.flow import path"}),
    (arrows_that_point_up, {"afm_scale.models.dit": "import afm_scale.parallel.ddp"}),
    (arrows_that_point_up, {"afm_scale.train.loop": "from ..parallel.ddp import DDP"}),
    (arrows_that_point_up, {"afm_scale.train.loop": "from ..parallel import ddp"}),
    (arrows_that_point_up, {"afm_scale.train.hooks.samples": "from ...objectives.afm import AFM"}),
    (arrows_that_point_up, {"afm_scale.objectives.afm": "from ..parallel.plan import Player"}),
    (arrows_that_point_up, {"afm_scale.run.build": "from tools import convert"}),
    (arrows_that_point_up, {"afm_scale.misc.odd": ""}),
    (circles, {"afm_scale.core.a": "from . import b", "afm_scale.core.b": "if TYPE_CHECKING:\n    from .a import g"}),
    (circles, {
        "afm_scale.core.a": "from .b import x", "afm_scale.core.b": "from .c import x",
        "afm_scale.core.c": "from .a import x",
    }),
    (rooms_in_circles, {
        "afm_scale.core.a": "from ..parallel.plan import x", "afm_scale.parallel.b": "import afm_scale.core",
    }),
    (names_of_later_pythons, {"afm_scale.core.a": "from typing import Any, Self"}),
    (commands_that_import_each_other, TWO_COMMANDS | {"afm_scale.commands.b": f"from .a import x\n{COMMAND}"}),
    (commands_that_import_each_other, TWO_COMMANDS | {"afm_scale.commands.ending": "def f():\n    from . import a"}),
    (commands_that_import_each_other, TWO_COMMANDS | {"afm_scale.__main__": "from .commands import a, table"}),
    (ranks_where_none_are_known, {"afm_scale.models.dit": "import torch.distributed as dist"}),
    (ranks_where_none_are_known, {"afm_scale.models.dit": "from torch import distributed"}),
    (ranks_where_none_are_known, {"afm_scale.objectives.afm": "import torch\ntorch.distributed.get_rank()"}),
    (ranks_where_none_are_known, {"afm_scale.data.toys.digits": "from torch.distributed.fsdp import fully_shard"}),
    (foreign_packages_in_core, {"afm_scale.core.types": "import numpy as np"}),
    (optional_packages_out_of_place, {"afm_scale.data.a": "def f():\n    import webdataset"}),
    (optional_packages_out_of_place, {"afm_scale.data.a": "import nvidia.dali", "afm_scale.data.b": "import nvidia"}),
    (import_errors_caught, {"afm_scale.data.a": "try:\n    import x\nexcept (OSError, ImportError):\n    x = None"}),
    (refused_calls, {"afm_scale.train.state": "def f(x):\n    return hasattr(x, 'y')"}),
    (refused_calls, {"afm_scale.run.load": "eval('1')"}),
    (files_too_long, {"afm_scale.data.a": "\n" * 301}),
    (files_too_long, {"afm_scale.train.loop": "\n" * 151}),
    (files_too_long, {"afm_scale.objectives.afm": "\n" * 181}),
    (words_past_the_screen, {"afm_scale.run.build": "print('x')"}),
    (words_past_the_screen, {"afm_scale.data.a": "import sys\nsys.stderr.write('x')"}),
    (words_past_the_screen, {"afm_scale.commands.a": "from rich import console\nconsole.Console().rule()"}),
    (switches_of_tf32, {"afm_scale.run.build": "import torch\ntorch.backends.cudnn.allow_tf32 = True"}),
    (switches_of_tf32, {"afm_scale.evaluation.a": "def f(kernel):\n    kernel.fp32_precision = 'ieee'"}),
    (switches_of_tf32, {"afm_scale.models.dit": "import torch\ntorch.set_float32_matmul_precision('high')"}),
]


@pytest.mark.parametrize("check, sources", VIOLATIONS)
def test_a_violation_is_found(check, sources):
    assert check(OURS | sources)


@pytest.mark.parametrize("check, sources", [
    (arrows_that_point_up, {"afm_scale.train.loop": "from ..parallel.plan import Player\nfrom ..core import types"}),
    (arrows_that_point_up, {"afm_scale.train.loop": "from ..parallel import plan\nfrom .state import TrainState"}),
    (arrows_that_point_up, {"afm_scale.run.build": "from ..parallel.ddp import DDP"}),
    (circles, {"afm_scale.core.a": "from . import b", "afm_scale.core.b": "def f():\n    from .a import g"}),
    (commands_that_import_each_other, TWO_COMMANDS | {"afm_scale.commands.table": "def f():\n    from . import a, b"}),
    (commands_that_import_each_other, TWO_COMMANDS | {"afm_scale.commands.doctor_data": "", "afm_scale.commands.b": (
        f"from .doctor_data import x\n{COMMAND}"
    )}),
    (ranks_where_none_are_known, {"afm_scale.parallel.ddp": "import torch.distributed as dist"}),
    (optional_packages_out_of_place, {"afm_scale.data.a": "import webdataset"}),
    (import_errors_caught, {"afm_scale.ops.norm": "try:\n    import apex\nexcept ImportError:\n    pass"}),
    (refused_calls, {"afm_scale.train.state": "model.eval()"}),
    (words_past_the_screen, {"afm_scale.core.screen": "import sys\nprint('x', file=sys.stderr)"}),
    (switches_of_tf32, {"afm_scale.core.arithmetic": "import torch\ntorch.backends.cudnn.allow_tf32 = True"}),
    (files_too_long, {"afm_scale.objectives.afm": "\n" * 180, "afm_scale.train.loop": "\n" * 150}),
])
def test_what_is_allowed_is_not_found(check, sources):
    assert check(OURS | sources) == []


def test_a_rank_that_draws_and_judges_nothing_imports_no_library_for_it() -> None:
    code = "import sys, afm_scale.commands.train; print(*sorted({'matplotlib', 'sklearn', 'scipy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout.strip()) == (0, ""), found.stderr
