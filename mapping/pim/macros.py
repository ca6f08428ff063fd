# SPDX-License-Identifier: Apache-2.0
"""Macro-commands for placed groups: a buffer filled and multiplied with every group, columns read and written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Macro, MacroKind
from lutra.mapping.pim.places import Piece, pieces

__all__ = ["multiply", "read", "runs", "write"]


def runs(positions: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first, times, step) of the longest runs of equal steps, in order."""
    i = 0
    while i < len(positions):
        j, step = i, positions[i + 1] - positions[i] if i + 1 < len(positions) else 0
        while j + 1 < len(positions) and positions[j + 1] - positions[j] == step > 0:
            j += 1
        yield positions[i], j - i + 1, step if j > i else 0
        i = j + 1


def multiply(positions: Sequence[int], count: int, config: PimConfig, batch: int = 1) -> list[Macro]:
    """``count`` buffer entries are filled while the first row opens and its accumulators are cleared; then a burst per position, read out in batches."""
    width = config.columns
    row, column = divmod(positions[0], width)
    made = [Macro(MacroKind.BUFFER, row=row, count=count, open=True, load=min(batch, len(positions)))]
    if batch == 1:
        made.append(Macro(MacroKind.MAC, row=row, column=column, count=count, read=1))
        for first, times, step in runs(positions[1:]):
            row, column = divmod(first, width)
            made.append(Macro(MacroKind.MAC, row=row, column=column, count=count, load=1, read=1, times=times, step=step))
        return made
    for start in range(0, len(positions), batch):
        part = positions[start : start + batch]
        for i, position in enumerate(part):
            row, column = divmod(position, width)
            load = len(part) if start and not i else 0
            made.append(Macro(MacroKind.MAC, row=row, column=column, count=count, load=load, read=len(part) if i == len(part) - 1 else 0, accumulator=i))
    return made


def read(parts: Iterable[Piece]) -> list[Macro]:
    """Columns of banks, piece by piece; pieces that follow each other in a row are one READ."""
    made: list[Macro] = []
    for p in parts:
        before = made[-1] if made else None
        if before is not None and (before.row, before.bank, before.column + before.count) == (p.row, p.bank, p.column):
            made[-1] = replace(before, count=before.count + p.count)
        else:
            made.append(Macro(MacroKind.READ, row=p.row, column=p.column, bank=p.bank, count=p.count))
    return made


def write(bank: int, position: int, count: int, config: PimConfig) -> list[Macro]:
    """``count`` columns of a bank from ``position`` on."""
    return [Macro(MacroKind.WRITE, row=p.row, column=p.column, bank=p.bank, count=p.count) for p in pieces(bank, position, count, config.columns)]
