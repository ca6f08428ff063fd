# SPDX-License-Identifier: Apache-2.0
"""The house's own rules: floors, licences, sizes, links, and that a wheel carries everything."""

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lutra.hls_models.load import PRESETS

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "hls_models": set(),
    "rtl": {"hls_models"},
    "mapping": {"hls_models"},
    "cosim": {"rtl", "mapping", "hls_models"},
    "fpga_flows": {"rtl", "mapping", "hls_models"},
    "lutra": {"fpga_flows", "cosim", "rtl", "mapping", "hls_models"},
}
"""What each room may import of ours, itself aside (docs/architecture.md, 1)."""

HLS_MODELS_PACKAGES = {"numpy", "pydantic", "yaml", "typing_extensions"}
TEXT = {".py", ".yaml", ".v", ".cpp", ".vlt", ".html", ".tcl", ".xdc"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|Users|tmp)/\w")
MAX_LINES = 450


def tracked() -> list[Path]:
    """Files of the repository: what git has, or everything in a source archive."""
    done = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = done.stdout.split("\0") if done.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if not {".venv", ".git"} & set(p.parts)]
    return sorted(path for name in names if name and (path := ROOT / name).is_file() and not path.is_symlink())


def imports(text: str, package: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, dotted parts) of every module that the text imports; ``package``: where relative imports start."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, tuple(alias.name.split("."))) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = base + tuple((node.module or "").split("."))
            yield from ((node.lineno, (*module, alias.name)) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            first = node.args[0] if node.args else None
            parts = first.values[0] if isinstance(first, ast.JoinedStr) else first
            if isinstance(parts, ast.Constant):
                yield node.lineno, tuple(str(parts.value).rstrip(".").split("."))


def violations(room: str, text: str, package: tuple[str, ...] = ("lutra", "x")) -> list[str]:
    """What a module of ``room`` imports against the floors."""
    found = []
    for line, parts in imports(text, package):
        if parts[0] == "lutra":
            # a name directly under lutra that is no room is the top floor's own module
            target = parts[1] if len(parts) > 1 and parts[1] in FLOORS else "lutra"
            if target != room and target not in FLOORS[room]:
                found.append(f"line {line}: {room} must not import {'.'.join(parts)}")
        elif parts[0] in FLOORS and parts[0] != "lutra":
            found.append(f"line {line}: {parts[0]} must be imported as lutra.{parts[0]}")
        elif room == "hls_models" and parts[0] not in sys.stdlib_module_names | HLS_MODELS_PACKAGES:
            found.append(f"line {line}: hls_models must not need {parts[0]}")
    return found


@pytest.mark.smoke
def test_imports_point_down() -> None:
    found = []
    for path in tracked():
        room = path.relative_to(ROOT).parts[0]
        if path.suffix == ".py" and room in FLOORS:
            package = ("lutra", *path.relative_to(ROOT).parent.parts) if room != "lutra" else path.relative_to(ROOT).parent.parts
            found += [f"{path.relative_to(ROOT)}: {fault}" for fault in violations(room, path.read_text(), package)]
    assert not found, "\n".join(found)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("hls_models", "from lutra.rtl import verilog"),
        ("hls_models", "import lutra.mapping.graph"),
        ("hls_models", "from lutra import runs"),
        ("hls_models", "import torch"),
        ("hls_models", "def f():\n    from lutra.cosim.harness import Bench"),
        ("hls_models", "from ..rtl import floats"),
        ("rtl", "from lutra import mapping"),
        ("rtl", "from lutra.cosim import harness"),
        ("mapping", "from lutra.rtl.verilog import emit"),
        ("cosim", "from lutra.api import cosim"),
        ("cosim", "import importlib\nimportlib.import_module('lutra.fpga_flows.boards')"),
        ("fpga_flows", "from importlib import import_module\nimport_module(f'lutra.cosim.{x}')"),
        ("rtl", "import hls_models.floats"),
    ],
)
def test_the_floor_check_can_fail(room: str, text: str) -> None:
    assert violations(room, text, ("lutra", room))
    assert not violations("lutra", "from lutra.cosim.harness import Bench\nfrom lutra import api")


@pytest.mark.smoke
def test_every_file_names_its_licence() -> None:
    names = {"Makefile", "run", "pyproject.toml"}
    chosen = [path for path in tracked() if (path.suffix in TEXT or path.name in names) and "models" not in path.relative_to(ROOT).parts[:2]]
    assert len(chosen) > 50
    assert not [str(path.relative_to(ROOT)) for path in chosen if "SPDX-License-Identifier: Apache-2.0" not in "\n".join(path.read_text().splitlines()[:3])]


@pytest.mark.smoke
def test_no_file_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in tracked() if path.suffix == ".py"}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}


@pytest.mark.smoke
def test_no_machine_is_in_the_text() -> None:
    home, words = "/".join(("", "home", "me", "x")), "/".join(("and", "or", "work", "ing"))
    assert MACHINE_PATH.search(f"open('{home}')") and not MACHINE_PATH.search(words)
    chosen = [path for path in tracked() if path.suffix in TEXT | {".md", ".toml", ".json", ".txt"} or path.name in ("Makefile", "run")]
    found = [f"{path.relative_to(ROOT)}:{n}" for path in chosen for n, line in enumerate(path.read_text().splitlines(), 1) if MACHINE_PATH.search(line)]
    assert not found


@pytest.mark.smoke
def test_links_make_the_import_names() -> None:
    for room in FLOORS:
        if room != "lutra":
            link = ROOT / "lutra" / room
            assert link.is_symlink() and str(link.readlink()) == f"../{room}", f"lutra/{room} must be a link to ../{room}"
            assert (ROOT / room / "__init__.py").is_file()


@pytest.mark.smoke
def test_packages_have_an_init() -> None:
    folders = {path.parent for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in FLOORS}
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]


@pytest.mark.smoke
def test_presets_are_named_as_their_files() -> None:
    paths = sorted(PRESETS.glob("*.yaml"))
    assert paths and not [path.name for path in paths if yaml.safe_load(path.read_text())["name"] != path.stem]


@pytest.mark.smoke
def test_continuous_integration_runs_the_tests() -> None:
    run = ROOT / ".ci" / "run"
    text = run.read_text()
    assert run.stat().st_mode & 0o111 and text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text and "make test" in text


@pytest.mark.smoke
def test_the_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) + re.findall(r'src="([^"]+)"', text) if "://" not in link]
    files = re.findall(r"\b(?:tests|examples|docs|hls_models)/[\w/.-]+\.\w+", text)
    assert links and files and not [name for name in [*links, *files] if not (ROOT / name).exists()]


@pytest.mark.soak
def test_a_wheel_carries_everything(tmp_path: Path) -> None:
    """Every file of the rooms that is no test is in the wheel, and the wheel works without the checkout."""
    source, files = tmp_path / "source", tracked()
    for path in [*files, *(ROOT / "lutra" / room for room in FLOORS if room != "lutra")]:
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            target.symlink_to(path.readlink())
        else:
            target.write_bytes(path.read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path / "wheels"), str(source)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    rooms = [path.relative_to(ROOT) for path in files if path.relative_to(ROOT).parts[0] in FLOORS]
    expected = {str(path) if path.parts[0] == "lutra" else f"lutra/{path}" for path in rooms}
    assert sorted(expected - inside) == []
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    command = [sys.executable, "-m", "lutra", "presets", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "installed")}, capture_output=True, text=True, check=True)
    assert '"tiny"' in done.stdout
