# SPDX-License-Identifier: Apache-2.0
"""What a MODEL argument may be: a folder, a bare config.json, or the name of a shipped model or shape."""

from __future__ import annotations

from pathlib import Path

from lutra.hls_models.errors import ModelError
from lutra.hls_models.shape import ModelShape
from lutra.mapping.importer import load
from lutra.mapping.model import TernaryModel

__all__ = ["model_names", "open_model", "shape_names"]

HERE = Path(__file__).parent


def model_names() -> list[str]:
    """Shipped models, weights included."""
    return sorted(path.parent.name for path in HERE.glob("models/*/config.json"))


def shape_names() -> list[str]:
    """Shipped shapes, sizes only."""
    return sorted(path.stem for path in HERE.glob("shapes/*.yaml"))


def open_model(name: str) -> TernaryModel | ModelShape:
    """The model behind a MODEL argument; a bare ``config.json`` or shape name gives the shape only.

    Raises
    ------
    ModelError
        There is no such model, or it is not supported.
    """
    if name in model_names():
        return load(HERE / "models" / name)
    if name in shape_names():
        return ModelShape.from_yaml(HERE / "shapes" / f"{name}.yaml")
    path = Path(name)
    if path.is_dir():
        return load(path)
    if not path.exists():
        raise ModelError(
            f"{name}: no such model; shipped are {', '.join(model_names() + shape_names())}; or give a folder with config.json and model.safetensors"
        )
    if path.suffix == ".json":
        return ModelShape.from_config(path)
    raise ModelError(
        f"{name}: {path.suffix or 'such'} files are not supported; supported are folders with config.json and model.safetensors, and a bare config.json"
    )
