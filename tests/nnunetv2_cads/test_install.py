"""What an installation puts where, and what it leaves; training/test_commands.py drives nnU-Net's commands from one."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SHOW_FOLDERS = "import os; print(os.environ.get('nnUNet_extTrainer', ''))"
DISCOVERY = ("nnunetv2_cads", "training", "discovery")


def test_the_wheel_holds_the_packages_and_the_start_up_files_only(wheel, source_tree):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
        record = archive.read(next(n for n in archive.namelist() if n.endswith("RECORD"))).decode()
    packages = [source_tree / name for name in ("nnunetv2_cads", "pretraining")]
    modules = [path for package in packages for kind in ("*.py", "*.json") for path in package.rglob(kind)]
    expected = {path.relative_to(source_tree).as_posix() for path in modules}
    assert names == expected | {"nnunetv2_cads.pth"}
    assert "License-Expression: Apache-2.0" in metadata
    assert all(f"{name}," in record for name in names)


def requirements() -> dict[str, str]:
    """Lower bound by package, of every extra, as setup.py has them."""
    return dict(re.findall(r'"([A-Za-z0-9-]+)>=([0-9.]+)"', (REPOSITORY / "setup.py").read_text()))


def test_what_the_tests_import_is_required():
    folders = [REPOSITORY / name for name in ("nnunetv2_cads", "pretraining", "benchmarks", "tests")]
    here = {path.stem for folder in folders for path in (folder, *folder.rglob("*")) if path.suffix in ("", ".py")}
    named = {{"scikit-image": "skimage"}.get(name, name) for name in requirements()}
    named |= {"pip", "pool_tasks"}  # a virtual environment brings the one, a test writes the other
    imported = set()
    for file in (REPOSITORY / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    assert sorted(imported - set(sys.stdlib_module_names) - here - named) == []


def test_the_design_notes_have_every_lower_bound():
    text = (REPOSITORY / "docs" / "design_notes.md").read_text(encoding="utf-8")
    missing = [
        f"{name} {bound}"
        for name, bound in requirements().items()
        if f"| {name} | {bound} |" not in text and f"{name} {bound}" not in text
    ]
    assert missing == []


def test_the_wheel_is_used_from_the_new_environment(installed):
    module, folders = installed.evaluate(
        "import os, nnunetv2_cads as n; print(n.__file__); print(os.environ['nnUNet_extTrainer'])"
    ).splitlines()
    assert Path(module).is_relative_to(installed.root)
    assert Path(folders) == Path(module).parent.joinpath(*DISCOVERY[1:])


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_uninstalling_leaves_nothing(editable, wheel, source_tree, make_virtual_environment):
    environment = make_virtual_environment()
    before = environment.files()
    environment.install(*(("-e", source_tree) if editable else (wheel,)))
    folder = source_tree.joinpath(*DISCOVERY) if editable else None
    shown = environment.evaluate(SHOW_FOLDERS)
    assert Path(shown) == folder if editable else Path(shown).is_relative_to(environment.root)
    environment.pip("uninstall", "--yes", "nnunetv2-cads")
    assert environment.files() == before
    assert environment.evaluate(SHOW_FOLDERS) == ""


def test_folders_of_a_user_come_first_and_children_do_not_repeat_ours(installed):
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SHOW_FOLDERS!r}])"
    mine = os.pathsep.join(["/my/trainers", "/more trainers"])
    ours = installed.evaluate(SHOW_FOLDERS)
    assert installed.evaluate(SHOW_FOLDERS, nnUNet_extTrainer=mine) == os.pathsep.join([mine, ours])
    assert installed.evaluate(nested, nnUNet_extTrainer=mine) == os.pathsep.join([mine, ours])


def test_start_up_imports_nothing_but_itself(installed):
    show = "import sys; print(*sorted(sys.modules))"
    modules = set(installed.evaluate(show).split())
    startup = installed.evaluate("import nnunetv2_cads as package; print(package.__file__)")
    path_file = Path(startup).parents[1] / "nnunetv2_cads.pth"
    aside = path_file.rename(path_file.with_suffix(".aside"))
    try:
        assert modules - set(installed.evaluate(show).split()) == {"nnunetv2_cads", "nnunetv2_cads.startup"}
    finally:
        aside.rename(path_file)


@pytest.mark.parametrize("module", [None, "raise RuntimeError", "import no_such_module", "def broken(:"])
def test_start_up_never_fails(module, installed, tmp_path):
    """Python reports a line of a .pth file that fails on stderr, and goes on."""
    package = Path(installed.evaluate("import nnunetv2_cads as package; print(package.__file__)"))
    line = (package.parents[1] / "nnunetv2_cads.pth").read_text()
    folder = tmp_path / "site"
    (folder / "nnunetv2_cads").mkdir(parents=True)
    (folder / "nnunetv2_cads.pth").write_text(line)
    if module is not None:
        (folder / "nnunetv2_cads" / "__init__.py").touch()
        (folder / "nnunetv2_cads" / "startup.py").write_text(module)
    code = f"import site, sys; sys.path[:0] = [{str(folder)!r}]; site.addsitedir({str(folder)!r}); print('alive')"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("alive\n", "")


def test_a_removed_package_is_not_announced(tmp_path, monkeypatch):
    copy = tmp_path / "startup.py"
    copy.write_text((REPOSITORY / "nnunetv2_cads" / copy.name).read_text())
    monkeypatch.setenv("nnUNet_extTrainer", "/my/trainers")
    exec(compile(copy.read_text(), copy, "exec"), {"__file__": str(copy)})
    assert os.environ["nnUNet_extTrainer"] == "/my/trainers"
