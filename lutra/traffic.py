# SPDX-License-Identifier: Apache-2.0
"""Bytes that a core moves at its memory, by kind, and the least that a token needs: what ceilings are made of."""

from typing import Protocol

from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.isa import Instruction, LoadMode, LoadTarget, Unit, executed
from lutra.hls_models.ternary.memory import PORT_BYTES
from lutra.hls_models.ternary.program import Program

__all__ = ["Traffic"]

KINDS = {
    LoadTarget.WEIGHTS: "weights",
    LoadTarget.PARAMS: "gains and scales",
    LoadTarget.ROPE: "rotary rows",
    LoadTarget.EMBED: "embedding",
    LoadTarget.HEAD: "head",
    LoadTarget.KV: "keys and values read",
    LoadTarget.PLANES: "head",
}
WRITTEN = "keys and values written"


class Size(Protocol):
    """A pass: ``tokens`` tokens from ``position``; ``last``: it ends with a choice; ``serial``: it verifies drafts; ``rescored``: rows of a head in two planes
    that are scored again."""

    @property
    def position(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def last(self) -> bool: ...
    @property
    def rescored(self) -> int: ...
    @property
    def serial(self) -> bool: ...


class Traffic:
    """Of a program on a core."""

    def __init__(self, spec: CoreSpec, program: Program) -> None:
        self.spec, self.program = spec, program

    def read(self, size: Size, instruction: Instruction) -> int:
        """Bytes that an instruction reads in a pass."""
        if instruction.unit is not Unit.LOADER or instruction.when not in executed(size.tokens, size.last):
            return 0
        f = instruction.fields
        if f["mode"] == LoadMode.TILES:
            return self._tiles(size) * self.program.beat_bytes
        if f["target"] == LoadTarget.PLANES and self.spec.planes:
            return (f["beats"] + size.rescored * self.spec.planes.row_beats) * self.program.beat_bytes
        return f["beats"] * self.program.beat_bytes * (1 if f["mode"] == LoadMode.DIRECT else size.tokens)

    def _tiles(self, size: Size) -> int:
        """Beats of a layer's tiles."""
        return sum(tile.beats for tile in self.spec.kv_layout.order(0, size.tokens, size.position, serial=size.serial))

    def by_kind(self, size: Size) -> dict[str, int]:
        """Bytes of a pass."""
        found: dict[str, int] = {}
        for instruction in self.program.instructions:
            moved = self.read(size, instruction)
            if moved:
                kind = KINDS[LoadTarget(instruction.fields["target"])]
                found[kind] = found.get(kind, 0) + moved
        if self.spec.config.memory:
            s = self.spec.shape
            found[WRITTEN] = 2 * s.layers * s.kv_heads * size.tokens * self.spec.kv_layout.row_writes * PORT_BYTES
        return found

    def total(self, size: Size) -> int:
        """Bytes of a pass, of all kinds."""
        return sum(self.by_kind(size).values())

    def ideal(self, size: Size) -> float:
        """The least that a pass of one decoded token moves: trits at five to a byte, the 8-bit head (of one in two planes the high one, and the low one of the
        rows scored again), 8-bit values of the context's rows read and of one written. Scales, padding and the token's embedding are not counted (as
        docs/kv260.md defines the ceiling)."""
        s = self.spec.shape
        rows = (s.vocabulary + size.rescored) / 2 if self.spec.planes else s.vocabulary
        return s.ternary_weights / 5 + rows * s.hidden + 2 * s.layers * s.kv_columns * (size.position + 2)
