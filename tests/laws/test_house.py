"""The house: imports go down the floors without circles, jobs do not know each other, files and functions stay short,
and the words are the field's.
"""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/vokens"
# Rooms from the ground up; what is not named lies on the ground.
FLOORS = (
    (),
    ("nn", "lm", "quantize", "flow", "data"),
    ("models",),
    ("train", "bench", "corpus"),
    ("cli", "compat", "serve", "web", "__main__"),
)
JOBS = {"train", "bench", "corpus"}


@cache
def modules() -> dict[str, Path]:
    def name(path: Path) -> str:
        return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")

    return {name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports() -> dict[str, set[str]]:
    """Module -> modules that it imports anywhere in it, lazily and for types too."""
    graph = {}
    for module, path in modules().items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: write imports in full"
                names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
        graph[module] = (names & modules().keys()) - {module}
    return graph


def floor(module: str) -> int:
    room = [*module.split("."), ""][1]
    return next((i for i, rooms in enumerate(FLOORS) if room in rooms), 0)


def test_no_imports_go_round() -> None:
    left = dict(imports())
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"these import each other, or are imported by such: {sorted(left)}"


def test_imports_go_down() -> None:
    up = [f"{a} -> {b}" for a, needs in imports().items() for b in needs if floor(b) > floor(a)]
    assert up == []


def test_jobs_do_not_know_each_other() -> None:
    def job(module: str) -> str:
        return [*module.split("."), ""][1]

    arrows = [(a, b) for a, needs in imports().items() for b in needs if {job(a), job(b)} <= JOBS]
    assert [f"{a} -> {b}" for a, b in arrows if job(a) != job(b)] == []


def test_files_and_functions_are_short() -> None:
    long = []
    for module, path in modules().items():
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > 450:
            long.append(f"{module}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 80:
                    long.append(f"{module}.{node.name}: {lines} lines")
    assert long == []
