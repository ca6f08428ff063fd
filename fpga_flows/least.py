# SPDX-License-Identifier: Apache-2.0
"""What a core takes at the very least of a board, by formula and in no time: what exceeds a total here need not be synthesised to be refused."""

from collections.abc import Mapping

from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.ecp5 import RAM_PLACES
from lutra.hls_models.ternary.sizing import block_ram, lookup_memories, styled_ram

__all__ = ["least"]

RAM4K_BITS = 4096


def least(spec: CoreSpec, beats: int, family: str) -> Mapping[str, float]:
    """Resources by a board's kinds of the memories that a core on chip cannot do without: program and weights (``beats``), cache, ring, buffers, tables."""
    config, attention, vector = spec.config, spec.attention, spec.vector
    deep = {
        "program and weights": (8 * config.beat_bytes, beats),
        "keys and values": (attention.row_bits, attention.rows),
        "weight ring": (spec.weights.row_bits, config.ring_rows),
        "residual stream": (vector.lanes * vector.format.bits, vector.max_tokens * (vector.hidden // vector.lanes)),
        "values before requantisation": (vector.lanes * vector.format.bits, vector.max_tokens * (vector.max_columns // vector.lanes)),
    }
    if family == "ice40":
        return {"ram4k": float(sum(-(-width * depth // RAM4K_BITS) for width, depth in deep.values()))}
    if family != "ecp5":
        return {}
    blocks = sum(block_ram("ecp5", width, depth)["DP16KD"] for width, depth in deep.values())
    lookup = lookup_memories("ecp5", spec.tlmm)
    blocks += sum(memory.get("DP16KD", 0) for memory in lookup.values())
    cells = sum(memory.get("TRELLIS_DPR16X4", 0) for memory in lookup.values())
    rows = (1 << (attention.group - 1).bit_length()) * (1 << (attention.max_tokens - 1).bit_length()) * attention.kv_heads
    queries = styled_ram("ecp5", attention.row_ram, attention.row_bits, rows)
    return {"bram18": float(blocks + queries.get("DP16KD", 0)), "lut": float(RAM_PLACES * (cells + queries.get("TRELLIS_DPR16X4", 0)))}
