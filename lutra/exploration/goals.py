# SPDX-License-Identifier: Apache-2.0
"""What a search minimises, its exact value from the cycle model, and bounds that no core of the same sizes can beat.

Bounds (per token; closed forms, no program needed) hold because LOADER moves at most a beat per slot of the memory, LINEAR looks up at most a row per clock for
``lanes`` tokens, and a matrix begins only when VECTOR has sent all codes of the result before it, V per clock. Of a head in two planes both are read whole, as
the exact figures assume: its worst case.
"""

from dataclasses import dataclass
from typing import Literal

from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.executor import plan_passes

__all__ = ["GOALS", "Bound", "Goal", "bound_of"]

Goal = Literal["decode", "ttft", "bytes"]

GOALS: dict[str, str] = {
    "decode": "seconds per decoded token",
    "ttft": "seconds to the first token of a prompt",
    "bytes": "bytes moved at the memory per decoded token (stands for energy, which has no measured source on an FPGA)",
}


@dataclass(frozen=True)
class Bound:
    """Least cycles of a decoded token at the context, of the first token of the prompt, and least bytes per decoded token."""

    decode: int
    ttft: int
    bytes: int


def _matrices(spec: CoreSpec) -> list[tuple[int, int]]:
    """(columns, inputs) of a layer's matrices as the mapping joins them."""
    s = spec.shape
    return [(s.query_columns + 2 * s.kv_columns, s.hidden), (s.hidden, s.query_columns), (2 * s.ffn, s.hidden), (s.hidden, s.ffn)]


def bound_of(spec: CoreSpec, prompt: int, context: int) -> Bound:
    """Bounds for a prompt of ``prompt`` tokens and a decoded token that attends ``context`` rows."""
    c, s = spec.config, spec.shape
    block = c.tables * c.group
    rows = s.layers * sum(-(-inputs // block) * -(-columns // c.columns) for columns, inputs in _matrices(spec))
    weights, table = rows * c.row_beats, s.vocabulary * spec.loader.table_beats
    codes = s.layers * (s.query_columns + 2 * s.kv_columns + s.query_columns + s.hidden + s.ffn + s.hidden) // c.vector_lanes

    def cached(keys: int) -> int:
        """Beats of keys and values of a pass whose last token attends ``keys`` rows."""
        return 2 * s.layers * s.kv_columns * keys // c.beat_bytes if c.memory else 0

    def head(tokens: int) -> int:
        """Beats of the head in a pass that ends with a choice: one of a single token scores the planes, where there are any."""
        return spec.planes.beats(s.vocabulary) if spec.planes and tokens == 1 else table

    def moved(beats: int) -> int:
        return c.memory.least_cycles(beats) if c.memory else beats

    decode_beats = weights + head(1) + cached(context)
    first = 0
    for position, tokens, last in plan_passes(0, prompt, c.chunk):
        beats = weights + last * head(tokens) + cached(position + tokens)
        first += max(moved(beats), rows * -(-tokens // c.lanes) + tokens * codes)
    return Bound(max(moved(decode_beats), rows + codes), first, decode_beats * c.beat_bytes)
