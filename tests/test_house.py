"""The house: who may import whom, what is public, what is packed, and what starts quickly."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path
    for folder in ("fedot", "compression", "privacy")
    for path in (ROOT / folder).rglob("*.py")
    if not {"compression", "privacy"} & set(path.relative_to(ROOT / folder).parts)
    # Made by protoc.
    and not path.stem.endswith("_pb2")
)

# docs/design.md, "Rooms". A room imports from lower floors only; on floors 0 and 8 the listed
# parts may use each other.
FLOORS = {
    "cli": 8,
    "console": 8,
    "report": 7,
    "studies": 6,
    "federation": 5,
    "engines": 4,
    "evaluation": 4,
    "client": 3,
    "emulator": 3,
    "aggregation": 3,
    "models": 2,
    "data": 2,
    "transport": 2,
    "journal": 1,
    "compression": 1,
    "privacy": 1,
    "cards": 0,
    "config": 0,
    "config_errors": 0,
    "config_federation": 0,
    "config_files": 0,
    "config_privacy": 0,
    "config_section": 0,
    "config_text": 0,
    "errors": 0,
    "messages": 0,
    "seeds": 0,
}
SHARED_FLOORS = {0, 8}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "fedot" else ("fedot", *parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file names, wherever in it: under TYPE_CHECKING and in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield (inner if inner in MODULES else module), node.lineno


def room_of(module: str) -> str:
    return module.split(".")[1]


def arrows(path: Path, name: str) -> list[str]:
    """What is wrong with a file's imports."""
    wrong = []
    for target, line in imports(path):
        where = f"{name}:{line} imports {target}"
        if target.startswith("."):
            wrong.append(f"{where}: write the module's full name")
        elif target.split(".")[0] in ("compression", "privacy"):
            wrong.append(f"{where}: write fedot.{target}")
        elif target == "fedot":
            wrong.append(f"{where}: name the module in which the thing is")
        elif target.startswith("fedot."):
            here, there = room_of(name), room_of(target)
            allowed = here == there or FLOORS[there] < FLOORS[here]
            shared = FLOORS[there] == FLOORS[here] and FLOORS[here] in SHARED_FLOORS
            if not allowed and not shared:
                wrong.append(f"{where}: floor {FLOORS[here]} -> floor {FLOORS[there]}")
    return wrong


def test_there_is_something_to_look_at():
    assert {"fedot.cli.app", "fedot.compression.codec", "fedot.privacy.ledger"} <= set(MODULES)
    assert len(MODULES) > 50


def test_every_room_has_a_floor():
    rooms = {room_of(name) for name in MODULES if name != "fedot"}
    assert rooms <= set(FLOORS)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "fedot"])
def test_imports_point_downwards(name):
    assert not arrows(MODULES[name], name)


@pytest.mark.parametrize(
    ("code", "room"),
    [
        ("from fedot.federation.run import simulate", "client"),
        ("from fedot.emulator.bundle import Bundle", "client"),
        ("import fedot.models.anatomy", "privacy"),
        ("def f():\n    from fedot.engines import local", "evaluation"),
        ("if TYPE_CHECKING:\n    from fedot.cli import app", "studies"),
        ("from . import bundle", "emulator"),
        ("import compression.codec", "models"),
        ("from privacy.ledger import Ledger", "client"),
        ("from fedot import simulate", "studies"),
        ("from fedot.data.records import Record", "models"),
        ("from fedot.privacy.noise import NoiseSource", "compression"),
        ("from fedot.console import Console", "report"),
    ],
)
def test_the_import_test_sees_every_kind_of_wrong_import(tmp_path, code, room):
    path = tmp_path / "file.py"
    path.write_text(code)
    assert arrows(path, f"fedot.{room}.file")


@pytest.mark.parametrize("name", MODULES)
def test_only_the_console_prints(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    printing = [f.lineno for f in calls if isinstance(f, ast.Name) and f.id == "print"]
    writing = [
        f.lineno
        for f in calls
        if isinstance(f, ast.Attribute)
        and ast.unparse(f) in ("sys.stdout.write", "sys.stderr.write")
    ]
    assert name == "fedot.console" or not printing + writing


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_all_names_what_is_there(name):
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [])
    assert len(public) == len(set(public))
    assert not [each for each in public if not hasattr(module, each)]


@pytest.mark.parametrize("name", MODULES)
def test_what_others_import_is_public(name):
    wrong = []
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or (node.module or "") not in MODULES:
            continue
        public = getattr(importlib.import_module(node.module or ""), "__all__", [])
        for alias in node.names:
            is_module = f"{node.module}.{alias.name}" in MODULES or alias.name.endswith("_pb2")
            if alias.name not in public and not is_module:
                wrong.append(f"{name}:{node.lineno} takes {alias.name} from {node.module}")
    assert not wrong


def test_public_face_offers_what_it_says():
    import fedot

    assert fedot.load_config.__module__ == "fedot.config"
    assert fedot.simulate.__module__ == "fedot.federation.run"
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = fedot.simulat


@pytest.mark.parametrize("name", MODULES)
def test_file_and_function_lengths_stay_readable(name):
    text = MODULES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    long = [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, functions) and (node.end_lineno or 0) - node.lineno >= 60 + _doc(node)
    ]
    assert not long


def _doc(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a docstring, which count for nothing."""
    return len((ast.get_docstring(node, clean=False) or "").splitlines())


@pytest.mark.parametrize("name", ["compression", "privacy"])
def test_payload_and_privacy_are_links_into_the_package_and_no_packages_themselves(name):
    assert not (ROOT / name / "__init__.py").exists()
    assert os.readlink(ROOT / "fedot" / name) == f"../{name}"


def test_no_conftest_at_the_root():
    assert not (ROOT / "conftest.py").exists()


def run(
    *arguments: str, cwd: Path, path: Path | None = ROOT, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter; `path` goes first on its sys.path, and None leaves it as installed."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        check=check,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_nothing_of_ours_shadows_the_standard_librarys_compression():
    code = """
import gzip, importlib.util
spec = importlib.util.find_spec("compression")
print(spec.origin if spec else None)
"""
    # From the root, with the root first on sys.path: where a package of ours would win.
    origin = run("-c", code, cwd=ROOT).stdout.strip()
    assert origin == "None" or not Path(origin).is_relative_to(ROOT)


IMPORT_ALL = """
import fedot, fedot.compression.codec, fedot.privacy.ledger
for module in (fedot, fedot.compression.codec, fedot.privacy.ledger):
    print(module.__file__)
"""


def test_installed_fedot_is_imported_from_anywhere(tmp_path):
    places = run("-c", IMPORT_ALL, cwd=tmp_path, path=None).stdout.split()
    assert [Path(place).name for place in places] == ["__init__.py", "codec.py", "ledger.py"]


MAIN = "from fedot.cli.app import main; main()"


def test_help_imports_no_heavy_library(tmp_path):
    code = """
import sys
sys.argv = ["fedot", "--help"]
from fedot.cli.app import main
try:
    main()
except SystemExit as end:
    heavy = {"torch", "numpy", "transformers", "peft", "matplotlib"} & set(sys.modules)
    print("HEAVY", sorted(heavy), "CODE", end.code)
"""
    out = run("-c", code, cwd=tmp_path).stdout
    assert "HEAVY [] CODE 0" in out
    assert all(verb in out for verb in ("demo", "simulate", "report", "init", "plug-in"))


def test_namesake_on_the_path_is_refused_in_one_line(tmp_path):
    info = tmp_path / "fedot-0.7.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedot\nVersion: 0.7.5\n")
    paths = Path(f"{tmp_path}{os.pathsep}{ROOT}")
    done = run("-c", MAIN, "--help", cwd=tmp_path, path=paths, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "the AutoML package 'fedot' 0.7.5 is installed over fedot-offsite-tuning" in done.stderr
    assert "pip uninstall" in done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the sdist, built from a copy so that nothing is left here."""
    home = tmp_path_factory.mktemp("build")
    source = home / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("fedot", "compression", "privacy"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    arguments = ("-m", "build", "--no-isolation", "--outdir", str(home / "dist"), str(source))
    run(*arguments, cwd=home, path=None)
    return home / "dist"


def wheel_of(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


NEEDED = {
    *(f"{'/'.join(name.split('.'))}.py" for name in MODULES if "." in name),
    *(f"fedot/report/{path.name}" for path in (ROOT / "fedot" / "report").glob("*.j2")),
    "fedot/__init__.py",
    "fedot/py.typed",
}


def packed(name: str) -> str:
    """Where a module's file is in a wheel; packages are folders."""
    return name if (ROOT / name).is_file() else name.removesuffix(".py") + "/__init__.py"


@pytest.mark.slow
def test_wheel_holds_every_module_template_and_type_marker(built):
    names = set(zipfile.ZipFile(wheel_of(built)).namelist())
    assert {"fedot/compression/codec.py", "fedot/privacy/ledger.py"} <= names
    assert len([name for name in names if name.endswith(".j2")]) >= 2
    assert {packed(name) for name in NEEDED} <= names


@pytest.mark.slow
def test_wheel_holds_one_package_and_no_tests(built):
    names = zipfile.ZipFile(wheel_of(built)).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"fedot", "fedot_offsite_tuning-0.1.0.dist-info"}
    assert len(names) == len(set(names))


@pytest.mark.slow
def test_sdist_holds_the_same_without_links(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        members = sdist.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert {packed(name) for name in NEEDED} <= names
    assert {"pyproject.toml", "LICENSE", "README.md"} <= names
    assert not [member.name for member in members if member.issym() or member.islnk()]


@pytest.mark.slow
def test_installed_wheel_works_from_another_directory(built, tmp_path):
    target = tmp_path / "site"
    wheel = str(wheel_of(built))
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target))
    run(*pip, wheel, cwd=tmp_path, path=None)
    places = run("-c", IMPORT_ALL, cwd=tmp_path, path=target).stdout.split()
    assert len(places) == 3
    assert all(Path(place).is_relative_to(target) for place in places)
    assert (
        "simulate" in run(str(target / "bin" / "fedot"), "--help", cwd=tmp_path, path=target).stdout
    )
