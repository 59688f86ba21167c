"""The plan of the house: which folder may import which, no circles, and what lies where.

Every import counts: at load time, inside functions, and for type checkers only.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the ground up. A module imports from lower floors and from its own room, the folder or file
# that is named here; rooms of one floor know nothing of each other.
FLOORS = (
    ("version", "_moved"),
    ("files",),
    ("configs", "metal"),
    ("ops",),
    ("layers",),
    ("compat", "data"),
    ("pretrained",),
    ("models",),
    ("tasks",),
    ("training", "viz", "export"),
    ("cli",),
    ("__init__", "__main__"),
)
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}
# In a clone these lie beside natten_zoo/, installed they are in it.
BESIDE = ("ops", "metal", "configs")


@cache
def modules() -> dict[str, Path]:
    """Every module by its name, packages too."""
    found = {}
    for top in ("natten_zoo", *BESIDE):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if top == "natten_zoo" else ("natten_zoo", *parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(name: str) -> set[str]:
    """The modules of the project that a module imports, wherever in its text."""
    package = name if modules()[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(up if node.level else ()), *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in modules() else base)
    return {module for module in found if module in modules()} - {name}


@cache
def graph() -> dict[str, set[str]]:
    return {name: imports(name) for name in modules()}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_room_has_its_floor():
    assert {room(name) for name in modules()} == set(HEIGHT)
    assert len(modules()) > 100


@pytest.mark.parametrize("name", sorted(HEIGHT))
def test_nothing_imports_upward_or_sideways(name):
    wrong = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in sorted(others)
        if room(module) == name != room(other) and HEIGHT[room(other)] >= HEIGHT[name]
    ]
    assert not wrong, "\n".join(wrong)


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Sets of nodes that reach each other (strongly connected components, Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges[node]:
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(members) > 1:
                found.append(set(members))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_are_found_wherever_they_stand():
    """Else the two tests before this one could not fail."""
    edges = graph()
    assert "natten_zoo.pretrained.load" in edges["natten_zoo.models.base"]  # at load time
    assert "natten_zoo.tasks.classification" in edges["natten_zoo.cli.classify"]  # in a function
    assert "natten_zoo.tasks" in edges["natten_zoo.cli._text"]  # for type checkers
    assert "natten_zoo.ops.functional" in edges["natten_zoo.models.naf"]  # from beside


def test_no_module_imports_itself_by_way_of_others():
    assert [sorted(members) for members in circles(graph())] == []


@pytest.mark.parametrize(
    ("folder", "wanted"),
    [
        ("ops", {"pure", "gpu", "native"}),
        ("metal", set()),
        (
            "natten_zoo",
            {
                *("assets", "cli", "compat", "data", "layers", "models", "pretrained", "tasks"),
                *("training", "viz", "export"),
            },
        ),
        ("natten_zoo/pretrained", {"readers"}),
        ("natten_zoo/models", set()),
        ("natten_zoo/tasks", set()),
    ],
)
def test_folders_are_as_planned(folder, wanted):
    files = [path.relative_to(ROOT / folder) for path in ROOT.joinpath(folder).rglob("*.*")]
    held = {path.parts[0] for path in files if len(path.parts) > 1 and path.suffix != ".pyc"}
    assert held - {"__pycache__"} == wanted


def test_each_tests_folder_is_of_a_room():
    held = {path.parent.name for path in ROOT.glob("tests/*/test_*.py")}
    assert held - {"docs", "metal_emulator", "packaging", "scripts"} <= set(HEIGHT)
