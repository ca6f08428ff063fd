# SPDX-License-Identifier: Apache-2.0
"""What takes long to make is made once: folders kept by the content that they follow from.

An entry is published by one rename, so that racing processes cannot see half of it; one whose checksums differ counts as absent.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from lutra.hls_models.errors import ToolError

__all__ = ["MANIFEST", "STALE_SECONDS", "cache_root", "digest", "intact", "kept", "key_of", "only", "publish", "rescued", "seal", "sweep"]

MANIFEST = "manifest.json"
STALE_SECONDS = 24 * 3600


def cache_root() -> Path:
    """``$LUTRA_CACHE`` or ``~/.cache/lutra/builds``."""
    return Path(os.environ.get("LUTRA_CACHE") or Path.home() / ".cache" / "lutra" / "builds")


def key_of(*parts: object) -> str:
    """Name of what follows from ``parts`` (JSON)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept(name: str, about: Mapping[str, object], make: Callable[[Path], Iterable[str]]) -> tuple[Path, bool]:
    """Folder of the entry ``name``, and whether it was there. Otherwise ``make`` fills a folder and names the files in it that count; ``about`` goes into its
    manifest. One process at a time makes an entry, the others wait for it."""
    folder = cache_root() / name
    if intact(folder):
        return folder, True
    with only(name):
        if intact(folder):
            return folder, True
        sweep()
        work = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=cache_root()))
        try:
            seal(work, make(work), about)
            publish(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder, False


def intact(folder: Path) -> bool:
    """Whether an entry is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return bool(files) and all(digest(folder / name) == one for name, one in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def seal(work: Path, products: Iterable[str], about: Mapping[str, object]) -> None:
    """Writes the manifest with the checksums of ``products``."""
    manifest = {**about, "files": {name: digest(work / name) for name in sorted(products)}}
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1))


def publish(work: Path, folder: Path) -> None:
    """Moves a finished entry to its place; whoever comes second keeps the first one's, unless that one is broken."""
    for _ in range(3):
        try:
            work.rename(folder)
            return
        except OSError:
            if intact(folder):
                return
            # A broken entry moves aside in one step before it is removed: nobody sees it half-deleted.
            with contextlib.suppress(OSError):
                folder.rename(work.with_suffix(".broken"))
            shutil.rmtree(work.with_suffix(".broken"), ignore_errors=True)
    raise ToolError(f"cannot publish a build to {folder}")


def rescued(log: Path) -> Path:
    """Where the log of a step that failed stays when its folder goes."""
    kept = Path(tempfile.mkdtemp(prefix="lutra-failed-")) / log.name
    if log.exists():
        shutil.copy(log, kept)
    return kept


def sweep() -> None:
    """Removes what interrupted processes left in the cache."""
    for work in cache_root().glob("*.*"):
        with contextlib.suppress(OSError):
            if time.time() - work.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def only(name: str) -> Iterator[None]:
    """One process at a time makes an entry of the cache: the others wait and find it made. A killed one's lock is free."""
    cache_root().mkdir(parents=True, exist_ok=True)
    path = cache_root() / f"{name}.lock"
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue  # the one before has removed it meanwhile: another may hold the new one
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
