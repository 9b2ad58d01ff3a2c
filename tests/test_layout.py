"""Data flows one way: a file imports only from rooms to the left of its own, and no two files import each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "nnunetv2_cads",  # the package's own file: its version
    "nnunetv2_cads.startup",
    "nnunetv2_cads.nnunet_version",
    "nnunetv2_cads.network_architecture.ops",
    "nnunetv2_cads.network_architecture",
    "nnunetv2_cads.encoder_file",
    "pretraining",
    "pretraining.system",
    "pretraining.config",
    "pretraining.presets",
    "pretraining.flags",
    "pretraining.ct",
    "pretraining.store",
    "pretraining.plain",  # left of what it is compared with, so that it stays independent
    "pretraining.views",
    "pretraining.method",
    "pretraining.run",
    "pretraining.probing",
    "pretraining.preprocess",
    "pretraining.train",
    "pretraining.export",
    "pretraining.probe",
    "nnunetv2_cads.tasks",
    "nnunetv2_cads.experiment_planning",
    "nnunetv2_cads.training",
    "nnunetv2_cads.comparison",
    "nnunetv2_cads.doctor",
    "nnunetv2_cads.demo.torsos",
    "nnunetv2_cads.demo",
)
"""Every room of the two packages, a folder or a file that stands alone, from the left to the right."""
NEVER_IMPORTED_BY_PRETRAINING = ("nnunetv2",)


def module_name(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The longest room that holds a module."""
    holding = [room for room in ROOMS if module == room or (module.startswith(room + ".") and "." in room)]
    assert holding, f"{module} stands in no room of this list"
    return max(holding, key=len)


def imports_of(file: Path, modules: set[str]) -> set[str]:
    """The modules that a file imports, wherever in the file: those of ``modules``, and other top-level names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & modules) or {node.module}
    return {name if name in modules else name.split(".")[0] for name in found}


def arrows(root: Path) -> dict[str, set[str]]:
    """Module -> what it imports, for both packages below a folder."""
    files = [file for package in ("nnunetv2_cads", "pretraining") for file in (root / package).rglob("*.py")]
    modules = {module_name(file, root) for file in files}
    return {module_name(file, root): imports_of(file, modules) for file in files}


def wrong_arrows(graph: dict[str, set[str]]) -> list[str]:
    """One sentence for each import that runs to the right."""
    place = {room: number for number, room in enumerate(ROOMS)}
    return sorted(
        f"{module} imports {other}, which stands to its right"
        for module, others in graph.items()
        for other in others & graph.keys()
        if place[room_of(other)] > place[room_of(module)]
    )


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring; empty where there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for other in sorted(graph[module] & graph.keys()):
            if cycle := visit(other, [*path, module]):
                return cycle
        done.add(module)
        return []

    return next((cycle for module in sorted(graph) if (cycle := visit(module, []))), [])


def test_no_import_runs_to_the_right():
    assert wrong_arrows(arrows(ROOT)) == []


def test_no_modules_import_each_other():
    assert find_cycle(arrows(ROOT)) == []


def test_pretraining_stands_without_nnunet():
    guilty = {
        module: others & set(NEVER_IMPORTED_BY_PRETRAINING)
        for module, others in arrows(ROOT).items()
        if module.split(".")[0] == "pretraining"
        or module.startswith(("nnunetv2_cads.network_architecture", "nnunetv2_cads.encoder_file"))
    }
    assert {module: others for module, others in guilty.items() if others} == {}


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("pretraining/ct/scan.py", "from pretraining.run import folder"),
        ("pretraining/method/loss.py", "import pretraining.train"),
        ("nnunetv2_cads/encoder_file/record.py", "def late():\n    from pretraining.system.errors import UserError"),
    ],
)
def test_an_import_to_the_right_is_seen(file, line, tmp_path):
    for package in ("pretraining", "nnunetv2_cads"):
        for source in (ROOT / package).rglob("*.py"):
            copy = tmp_path / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(source.read_text())
    (tmp_path / file).write_text((tmp_path / file).read_text() + "\n" + line + "\n")
    told = wrong_arrows(arrows(tmp_path))
    assert len(told) == 1 and module_name(Path(file), Path()) in told[0]
