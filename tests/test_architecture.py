"""The house's rules: imports run down only, and starting the command imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vdisk

PACKAGE = Path(vdisk.__file__).parent

# Lower floors first. A part may import those on lower floors, and itself.
FLOORS = (
    {"errors"},
    {"storage"},
    {"block"},
    {"formats", "hv"},
    {"converter", "inspect", "maintain", "compat", "serve", "ova"},
    {"cli"},
)
FLOOR_OF = {part: number for number, parts in enumerate(FLOORS) for part in parts}


def modules() -> Iterator[tuple[str, Path]]:
    """(part, file) of every module; the package's own face and `python -m vdisk` stand above all."""
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part not in ("__init__", "__main__"):
            yield part, path


def imports_of(path: Path) -> Iterator[str]:
    """Parts of vdisk that a file imports, anywhere in it, type checking included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "vdisk":
                names = [f"vdisk.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("vdisk."):
                yield name.split(".")[1]


@pytest.mark.parametrize("part", sorted({part for part, _ in modules()}))
def test_imports_run_down_only(part: str) -> None:
    assert part in FLOOR_OF, f"vdisk/{part} stands on no floor: give it one in this test and in docs/design.md"
    for owner, path in modules():
        if owner != part:
            continue
        for imported in imports_of(path):
            if imported == "__version__":
                continue
            below = FLOOR_OF[imported] < FLOOR_OF[part]
            beside = FLOOR_OF[imported] == FLOOR_OF[part] and part not in ("formats", "hv") and part != "cli"
            assert imported == part or below or beside, f"{path.relative_to(PACKAGE)} imports vdisk.{imported}"


def test_the_hypervisor_knows_no_format() -> None:
    for part, path in modules():
        if part == "hv":
            assert "formats" not in set(imports_of(path)), path


def test_construct_is_declared_in_structs_only() -> None:
    for path in sorted((PACKAGE / "formats").rglob("*.py")):
        if path.name in ("structs.py", "parse.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "construct" not in {name.split(".")[0] for name in names}, path.relative_to(PACKAGE)


HEAVY = {
    "construct", "numpy", "tqdm", "zstandard", "isal", "cryptography", "PIL", "hypothesis", "xml", "asyncio", "ssl",
    "multiprocessing", "concurrent.futures", "socket", "ctypes", "vdisk.formats.qcow2.image", "vdisk.hv.machine",
}  # fmt: skip


def imported_by(*arguments: str) -> set[str]:
    """The modules that a run of the command has imported at its end."""
    code = f"""
import sys
try:
    from vdisk.cli import main
    main({list(arguments)!r})
finally:
    sys.stderr.write("\\n".join(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(run.stderr.split("\n"))


def test_help_imports_nothing_heavy() -> None:
    assert imported_by("--help") & HEAVY == set()


def test_info_of_a_raw_image_imports_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    assert imported_by("info", str(path)) & HEAVY == set()


def test_the_package_alone_imports_nothing_of_itself() -> None:
    code = "import sys, vdisk; print(*[m for m in sys.modules if m.startswith('vdisk.')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == []


def test_every_public_name_is_there() -> None:
    for name in vdisk.__all__:
        assert getattr(vdisk, name) is not None


def test_no_module_outgrows_a_reader() -> None:
    too_long = {
        str(path.relative_to(PACKAGE)): lines
        for _, path in modules()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 600
    }
    assert too_long == {}, "a file above about 500 lines asks to be split"


def test_no_library_module_prints_or_exits() -> None:
    for part, path in modules():
        if part == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "exit", "quit"), path.relative_to(PACKAGE)
