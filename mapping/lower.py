# SPDX-License-Identifier: Apache-2.0
"""From a model to the program of a ternary core."""

from __future__ import annotations

import numpy as np

from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.program import Program
from lutra.mapping.graph import Graph, build
from lutra.mapping.model import TernaryModel
from lutra.mapping.passes import apply
from lutra.mapping.schedule import schedule
from lutra.mapping.tiles import Core

__all__ = ["compile_model"]


def compile_model(model: TernaryModel | ModelShape | Graph, core: Core, check: np.ndarray | None = None) -> Program:
    """Program of ``model`` on ``core``: passes, tiles, placement, encoding.

    Parameters
    ----------
    model
        A checkpoint; a bare shape gives a program without image, enough for cycles; a graph is one that has not been through the passes.
    core
        Sizes of the core (``CoreConfig``).
    check
        Token ids; each pass is then held to its bound on them.

    Raises
    ------
    ConfigError
        The core cannot hold the model.
    MismatchError
        A pass changed the meaning of the graph.
    """
    graph = model if isinstance(model, Graph) else build(model)
    return schedule(apply(graph, check=check), core)
