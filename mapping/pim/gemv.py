# SPDX-License-Identifier: Apache-2.0
"""A matrix times a vector as a program of its own: for tests, benches and measurements of one matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.errors import ConfigError, ModelError
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Operation, Program, Receive, Statistic, Vector
from lutra.mapping.pim.costs import Costs
from lutra.mapping.pim.flow import Flow
from lutra.mapping.pim.macros import multiply, read
from lutra.mapping.pim.partition import Matrix, chunk_columns
from lutra.mapping.pim.places import Shelf, Striped, placements
from lutra.mapping.pim.sram import vector_words
from lutra.mapping.pim.weights import Cells, place_matrix, place_vector

__all__ = ["Gemv", "gemv"]


@dataclass(frozen=True)
class Gemv:
    """y = W x + bias: the input vector is read from the banks, sent back and multiplied; the last receipt is y."""

    config: PimConfig
    program: Program
    matrix: Matrix
    vector: Striped
    bias: Striped
    rows: int

    def cells(self, weights: NDArray[np.float64], vector: NDArray[np.float64], bias: NDArray[np.float64]) -> Cells:
        """Contents for (outputs, inputs), (inputs,), (outputs,)."""
        config = self.config
        into = np.zeros((config.channels, config.banks, self.rows * config.columns, config.lanes), np.uint16)
        place_matrix(into, self.matrix, weights)
        place_vector(into, self.vector, vector, config.columns)
        place_vector(into, self.bias, bias, config.columns)
        return into


def gemv(inputs: int, outputs: int, config: PimConfig) -> Gemv:
    """Program of a matrix of any size from 1 x 1 on; the index register ends with the largest output's.

    Raises
    ------
    ModelError
        The matrix has more rows than a bank.
    ConfigError
        Vectors and results do not fit the SRAM.
    """
    if inputs < 1 or outputs < 1:
        raise ModelError(f"a matrix must have at least 1 x 1 values, not {outputs} x {inputs}")
    costs = Costs.of(config)
    groups = -(-outputs // (config.banks * config.channels))
    row, chunks = 0, []
    for columns in chunk_columns(inputs, groups, costs):
        chunks.append(placements(columns, groups, costs)[0][1].at(row))
        row += chunks[-1].rows
    shelf = Shelf(row, config.banks, config.columns)
    vector, bias = shelf.place((inputs, outputs), config.lanes, config.channels)
    matrix, rows = Matrix("gemv", outputs, inputs, tuple(chunks)), row + shelf.rows
    if rows > config.rows:
        raise ModelError(f"a matrix of {outputs} x {inputs} needs {rows} rows per bank, {config.name} has {config.rows}")
    x, y, unit = 0, vector_words(inputs, config), vector_words(outputs, config)
    held = y + unit
    if held + unit > config.sram_words:
        least = (held + unit) * 4 * config.banks
        raise ConfigError(
            f"companion.sram_bytes must hold input, bias and output of {outputs} x {inputs} ({least} bytes), "
            f"not {config.companion.sram_bytes}; nearest legal value {least}"
        )
    flow, channels = Flow(config), range(config.channels)
    step = flow.step("vectors")
    step.add(channels, *read((*vector.pieces, *bias.pieces)))
    for striped, dst in ((vector, x), (bias, y)):
        step.receive.append([Receive(0, config.channels, striped.columns, striped.values, dst, wide=True)])
    for i, (chunk, start) in enumerate(zip(chunks, matrix.starts(), strict=True)):
        step = flow.step("gemv", after=None if i == 0 else 0)
        step.add(channels, *multiply(chunk.positions(), chunk.columns, config, chunk.batch))
        valid = min(chunk.columns * config.lanes, inputs - start * config.lanes)
        step.send = [Vector(Operation.COPY, x + start * config.words_per_beat, chunk.columns, valid, mask=(1 << config.channels) - 1)]
        last = i == len(chunks) - 1
        step.receive = [
            [
                Receive(
                    0,
                    config.channels,
                    groups,
                    outputs,
                    held,
                    partial=held if i else None,
                    bias=y if last else None,
                    statistic=Statistic.ARGMAX if last else Statistic.NONE,
                )
            ]
        ]
    return Gemv(config, flow.program(), matrix, vector, bias, rows)
