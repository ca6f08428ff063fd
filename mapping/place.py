# SPDX-License-Identifier: Apache-2.0
"""Placement: blocks one behind the other, instructions that name blocks instead of addresses, and their final form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.isa import INSTRUCTION_BITS, Instruction, Semaphore, Unit, When, encode
from lutra.hls_models.ternary.kv_layout import KvLayout
from lutra.hls_models.ternary.program import Program, Region

__all__ = ["CACHE", "FREE", "Block", "Layout", "Step"]

CACHE = "cache"
"""Region of keys and values in a shared memory."""

FREE = Semaphore(0)
"""Waits for nothing, signals nothing."""


@dataclass(frozen=True)
class Block:
    """Bytes to place: ``data`` makes them (uint8, at most ``beats`` beats, zero-padded to that); None where only the shape is known."""

    name: str
    beats: int
    useful_bits: int
    data: Callable[[], np.ndarray] | None


@dataclass(frozen=True)
class Step:
    """An instruction before placement: a load names its block and starts ``offset`` beats into it."""

    unit: Unit
    label: str
    fields: dict[str, int]
    when: When = When.ALWAYS
    wait: Semaphore = FREE
    signal: Semaphore = FREE
    block: str | None = None
    offset: int = 0


class Layout:
    """Collects steps and blocks in order; ``program`` gives them addresses.

    Parameters
    ----------
    align : every block starts at a multiple of so many beats
    cache : keys and values behind the program, where they are in this memory; their region is called ``CACHE`` and has no block
    """

    def __init__(self, shape: ModelShape, beat_bytes: int, program_words: int, *, align: int = 1, cache: KvLayout | None = None) -> None:
        self._shape, self._beat_bytes, self._program_words = shape, beat_bytes, program_words
        self._align, self._cache = align, cache
        self._steps: list[Step] = []
        self._blocks: dict[str, Block] = {}

    def block(self, block: Block) -> Block:
        """Place ``block`` after the others; a block placed before (a tied table) stays where it is."""
        return self._blocks.setdefault(block.name, block)

    def step(self, step: Step) -> None:
        self._steps.append(step)

    def program(self) -> Program:
        """The placed and encoded program; ConfigError where the sequencer cannot hold it."""
        if len(self._steps) > self._program_words:
            raise ConfigError(
                f"program_words must hold the {len(self._steps)} instructions of {self._shape.name}, not {self._program_words}; nearest: {len(self._steps)}"
            )
        word_bytes = INSTRUCTION_BITS // 8
        word_beats = -(-word_bytes // self._beat_bytes)
        regions = [Region("program", 0, len(self._steps) * word_beats, len(self._steps) * INSTRUCTION_BITS)]
        if self._cache is not None:
            regions.append(Region(CACHE, self._cache.base, self._cache.beats, 0))
        for block in self._blocks.values():
            start = -(-regions[-1].end // self._align) * self._align
            regions.append(Region(block.name, start, block.beats, block.useful_bits))
        starts = {region.name: region.address for region in regions}
        instructions = []
        for step in self._steps:
            fields = step.fields if step.block is None else step.fields | {"address": starts[step.block] + step.offset}
            instructions.append(Instruction(step.unit, fields, step.when, step.wait, step.signal))
        words = np.zeros((len(instructions), word_beats * self._beat_bytes), np.uint8)
        for row, instruction in zip(words, instructions, strict=True):
            row[:word_bytes] = np.frombuffer(encode(instruction).to_bytes(word_bytes, "little"), np.uint8)
        image = self._image(words.reshape(-1), regions)
        return Program(self._shape, self._beat_bytes, tuple(instructions), tuple(s.label for s in self._steps), tuple(regions), image)

    def _image(self, words: np.ndarray, regions: list[Region]) -> np.ndarray | None:
        if any(block.data is None for block in self._blocks.values()):
            return None
        image = np.zeros(regions[-1].end * self._beat_bytes, np.uint8)
        image[: len(words)] = words
        for region in regions:
            if region.name not in self._blocks:  # the program, and the cache, which begins as zeros
                continue
            make = self._blocks[region.name].data
            assert make is not None
            data = make().reshape(-1)
            room = region.beats * self._beat_bytes
            if len(data) > room:
                raise ValueError(f"{region.name}: {len(data)} bytes do not fit {region.beats} beats of {self._beat_bytes} bytes")
            image[region.address * self._beat_bytes :][: len(data)] = data
        return image
