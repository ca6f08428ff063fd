# SPDX-License-Identifier: Apache-2.0
"""What a MODEL argument may be: a folder, a GGUF file, a bare config.json, or the name of a shipped model or shape."""

from __future__ import annotations

from pathlib import Path

import yaml

from lutra.hls_models.errors import ModelError
from lutra.hls_models.shape import ModelShape, read_config
from lutra.mapping import importer
from lutra.mapping.model import TernaryModel
from lutra.mapping.pim import importer as gpt_importer
from lutra.mapping.pim.model import GptModel
from lutra.mapping.pim.shape import GptShape, is_gpt
from lutra.mapping.tensor import Update

__all__ = ["config_shape", "model_names", "open_model", "shape_names"]

HERE = Path(__file__).parent
GIVEN = "a folder with config.json and model.safetensors, a .gguf file"


def model_names() -> list[str]:
    """Shipped models, weights included."""
    return sorted(path.parent.name for path in HERE.glob("models/*/config.json"))


def _shapes() -> dict[str, Path]:
    return {path.stem: path for path in HERE.glob("shapes/**/*.yaml")}


def shape_names() -> list[str]:
    """Shipped shapes, sizes only."""
    return sorted(_shapes())


def config_shape(path: Path) -> ModelShape | GptShape:
    """Shape of a ``config.json``, in which what it names decides the family, or of a GGUF file."""
    if path.suffix == ".gguf":
        from lutra.mapping import gguf_importer  # the package behind it is read only where it is needed

        return gguf_importer.read_shape(path)
    config = read_config(path)
    return GptShape.from_mapping(config, path) if is_gpt(config) else ModelShape.from_mapping(config, path)


def _folder(path: Path, update: Update | None) -> TernaryModel | GptModel:
    return gpt_importer.load(path) if is_gpt(read_config(path / "config.json")) else importer.load(path, update)


def open_model(name: str, update: Update | None = None) -> TernaryModel | ModelShape | GptModel | GptShape:
    """The model behind a MODEL argument; a bare ``config.json`` or shape name gives the shape only.

    ``update`` is called with the bytes of a ternary checkpoint looked at so far, and all.

    Raises
    ------
    ModelError
        There is no such model, or it is not supported.
    """
    if name in model_names():
        return _folder(HERE / "models" / name, update)
    if name in shape_names():
        path = _shapes()[name]
        family = yaml.safe_load(path.read_text(encoding="utf-8")).get("family")
        return GptShape.from_yaml(path) if family == "gpt" else ModelShape.from_yaml(path)
    path = Path(name)
    if path.is_dir():
        return _folder(path, update)
    if not path.exists():
        raise ModelError(f"{name}: no such model; shipped are {', '.join(model_names() + shape_names())}; or give {GIVEN}")
    if path.suffix == ".json":
        return config_shape(path)
    if path.suffix == ".gguf":
        from lutra.mapping import gguf_importer

        return gguf_importer.load(path, update)
    raise ModelError(f"{name}: {path.suffix or 'such'} files are not supported; supported are {GIVEN}, or a bare config.json")
