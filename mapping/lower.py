# SPDX-License-Identifier: Apache-2.0
"""From a model to the program of a ternary core."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.program import Program
from lutra.mapping.graph import Graph, build
from lutra.mapping.model import TernaryModel
from lutra.mapping.passes import apply
from lutra.mapping.schedule import schedule
from lutra.mapping.tensor import Update
from lutra.mapping.tiles import Core

__all__ = ["compile_model"]


def compile_model(
    model: TernaryModel | ModelShape | Graph, core: Core, check: np.ndarray | None = None, image: Path | None = None, update: Update | None = None
) -> Program:
    """Program of ``model`` on ``core``: passes, tiles, placement, encoding.

    Parameters
    ----------
    model
        A checkpoint; a bare shape gives a program without image, enough for cycles; a graph is one that has not been through the passes.
    core
        Sizes of the core (``CoreConfig``).
    check
        Token ids; each pass is then held to its bound on them.
    image
        File to write the memory image to, one matrix in memory at a time; without it the image is an array.
    update
        Called with the bytes of the image made so far, and all.

    Raises
    ------
    ConfigError
        The core cannot hold the model.
    MismatchError
        A pass changed the meaning of the graph.
    """
    graph = model if isinstance(model, Graph) else build(model)
    return schedule(apply(graph, check=check), core, image=image, update=update)
