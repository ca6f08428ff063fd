# SPDX-License-Identifier: Apache-2.0
"""RTL runs that back the cycle model's figures: ``proofs.json``, which ``python -m benchmarks token MODEL [PRESET]`` writes. A proof is of programs as they
were: it carries a digest of them, and says so where they have changed since."""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from lutra.hls_models.ternary.core import CoreSpec
from lutra.runs import config_hash

__all__ = ["PROOFS", "Proof", "backing", "backing_of", "digest", "modules", "sizes_hash", "sources", "write"]

HERE = Path(__file__).parent
PROOFS = HERE / "proofs.json"
ROOTS = ("lutra.rtl.ternary.shared_system", "lutra.hls_models.ternary.executor", "lutra.hls_models.ternary.core_cycles")
"""RTL, golden and cycle model of a core on a shared memory. Mapping is none of them: of a program that it made otherwise the cycles tell."""


@dataclass(frozen=True)
class Proof:
    """``text``: what was run on the RTL of a core (``sizes_hash``), in words; ``sources``: digest of what it proved; ``command``: runs it once more."""

    core: str
    sources: str
    command: str
    text: str

    def __str__(self) -> str:
        return self.text if self.sources == sources() else f"{self.text} (proved an earlier version of RTL or models; renewed by `{self.command}`)"


@cache
def _proofs() -> list[Proof]:
    return [Proof(**one) for one in json.loads(PROOFS.read_text(encoding="utf-8"))] if PROOFS.is_file() else []


def write(proofs: Iterable[Proof]) -> None:
    """Keeps proofs in place of all that were there."""
    PROOFS.write_text(json.dumps([asdict(proof) for proof in proofs], indent=1) + "\n", encoding="utf-8")
    _proofs.cache_clear()


def sizes_hash(spec: CoreSpec) -> str:
    """Of a core's sizes and shape: not of the configuration's name, its device or the length of the context that the cache has room for."""
    config = spec.config.model_copy(update={"name": "", "device": None})
    shape = spec.shape.model_copy(update={"name": "", "context": 1, "layers": 1})
    return f"{config_hash(config)[:16]}-{config_hash(shape)[:16]}"


def backing(spec: CoreSpec) -> str | None:
    """What was run on the RTL of a core with these sizes, in words; None where nothing was."""
    return backing_of(sizes_hash(spec))


def backing_of(core: str) -> str | None:
    """The same, by ``sizes_hash``."""
    return "; ".join(str(proof) for proof in _proofs() if proof.core == core) or None


@cache
def sources() -> str:
    """Digest of the programs that a proof is about."""
    return digest(modules(), {path.name: path.read_text(encoding="utf-8") for path in (HERE / "rtl" / "verilog").glob("*.v")})


def modules() -> dict[str, ast.Module]:
    """``ROOTS`` and every module of ours that they import, by name."""
    found: dict[str, ast.Module] = {}
    todo = list(ROOTS)
    while todo:
        name = todo.pop()
        place = HERE.joinpath(*name.split(".")[1:])
        path = next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)
        if name in found or path is None:  # a name that is imported from a module is none itself
            continue
        found[name] = ast.parse(path.read_bytes())
        for node in ast.walk(found[name]):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lutra."):
                todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names if alias.name.startswith("lutra.")]
    return found


def digest(trees: Mapping[str, ast.Module], cells: Mapping[str, str]) -> str:
    """Of modules (comments, docstrings, descriptions of fields and layout are not in it) and of the text of hand-written Verilog, by name."""
    found = hashlib.sha256()
    for name, tree in sorted(trees.items()):
        found.update(f"{name} {_plain(tree)}\n".encode())
    for name, text in sorted(cells.items()):
        found.update(f"{name} {text}\n".encode())
    return found.hexdigest()[:16]


def _plain(node: object) -> object:
    """A syntax tree as nested lists without what is only told; empty fields left out, since later Pythons have more of them."""
    if isinstance(node, list):
        return [_plain(one) for one in node if not _told(one)]
    if isinstance(node, ast.AST):
        return [type(node).__name__, *((name, _plain(value)) for name, value in ast.iter_fields(node) if value not in (None, []))]
    return repr(node)


def _told(node: ast.AST) -> bool:
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return text or (isinstance(node, ast.keyword) and node.arg == "description")
