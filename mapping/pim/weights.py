# SPDX-License-Identifier: Apache-2.0
"""What the cells of all banks hold: weights, vectors and tables of a model at their places, bf16."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lutra.mapping.pim.model import Folded, GptModel, to_bf16
from lutra.mapping.pim.partition import Matrix, Partition, Placed
from lutra.mapping.pim.places import Striped

__all__ = ["Cells", "cells", "place_matrix", "place_positions", "place_vector", "spread", "stacked"]

Cells = NDArray[np.uint16]
"""bf16 bits (channels, banks, rows * columns, V)."""


def place_matrix(into: Cells, matrix: Matrix, values: NDArray[np.float64]) -> None:
    """Rows of ``values`` (outputs, inputs) over channels, banks and groups, their columns over chunks; zeros pad both."""
    channels, banks, _, lanes = into.shape
    bits = np.zeros((matrix.groups * channels * banks, sum(chunk.columns for chunk in matrix.chunks) * lanes), np.uint16)
    bits[: values.shape[0], : values.shape[1]] = to_bf16(values)
    for chunk, start in zip(matrix.chunks, matrix.starts(), strict=True):
        part = bits[:, start * lanes : (start + chunk.columns) * lanes].reshape(matrix.groups, channels, banks, chunk.columns, lanes)
        where = np.array(chunk.positions())[:, None] + np.arange(chunk.columns)
        into[:, :, where] = part.transpose(1, 2, 0, 3, 4)


def place_vector(into: Cells, vector: Striped, values: NDArray[np.float64], columns: int) -> None:
    """Values over the channels, beat by beat; zeros behind them."""
    channels, _, _, lanes = into.shape
    bits = np.zeros(vector.columns * channels * lanes, np.uint16)
    bits[: len(values)] = to_bf16(values)
    beats = bits.reshape(vector.columns, channels, lanes).transpose(1, 0, 2)
    at = 0
    for piece in vector.pieces:
        first = piece.row * columns + piece.column
        into[:, piece.bank, first : first + piece.count] = beats[:, at : at + piece.count]
        at += piece.count


def place_positions(into: Cells, places: Placed, table: NDArray[np.float32]) -> None:
    """A row of ``table`` per position, over the channels."""
    hidden, config = table.shape[1], places.config
    for position, values in enumerate(table):
        vector = Striped(hidden, -(-hidden // config.lanes), tuple(places.position_pieces(position)))
        place_vector(into, vector, values.astype(np.float64), config.columns)


def stacked(partition: Partition, folded: Folded, layer: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The joint matrix of a layer (values, keys, queries in the order of its outputs) and its bias, which only queries have."""
    order = np.array(partition.layout.rows())
    together = np.concatenate([folded.value[layer], folded.key[layer], folded.query[layer], np.zeros((1, partition.shape.hidden))])
    size = partition.shape.query_columns
    bias = np.concatenate([np.zeros(2 * size), folded.query_bias[layer], np.zeros(1)])
    return together[order], bias[order]


def spread(matrix: NDArray[np.float64], heads: int, width: int) -> NDArray[np.float64]:
    """Columns of an output matrix head by head, each head padded to ``width`` with zeros: as the heads' results lie in the SRAM."""
    outputs, size = len(matrix), matrix.shape[1] // heads
    wide = np.zeros((outputs, heads, width))
    wide[:, :, :size] = matrix.reshape(outputs, heads, size)
    return wide.reshape(outputs, -1)


def cells(model: GptModel, partition: Partition) -> Cells:
    """The contents of all rows that the partition uses; keys and values zero."""
    config, layout, shape = partition.config, partition.layout, partition.shape
    width, unit = config.columns, config.channels * config.banks
    into: Cells = np.zeros((config.channels, config.banks, partition.rows * width, config.lanes), np.uint16)
    folded = Folded.of(model)
    place_matrix(into, partition.head, model.head.astype(np.float64))
    if partition.embedding is not partition.head:
        place_matrix(into, partition.embedding, model.embedding.astype(np.float64))
    for layer, places in enumerate(partition.layers):
        joint, bias = stacked(partition, folded, layer)
        place_matrix(into, places.joint, joint)
        place_matrix(into, places.output, spread(folded.output[layer], shape.heads, layout.words * config.banks))
        place_matrix(into, places.up, folded.up[layer])
        place_matrix(into, places.down, folded.down[layer])
        place_vector(into, places.query_bias, bias[layout.query_offset // config.channels * unit :], width)
        place_vector(into, places.output_bias, folded.output_bias[layer], width)
        place_vector(into, places.up_bias, folded.up_bias[layer], width)
        place_vector(into, places.down_bias, folded.down_bias[layer], width)
    place_vector(into, partition.gain, model.norm.gain.astype(np.float64), width)
    place_vector(into, partition.bias, model.norm.bias.astype(np.float64), width)
    place_positions(into, partition, model.positions)
    return into
