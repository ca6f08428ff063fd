# SPDX-License-Identifier: Apache-2.0
"""Keys and values in a shared memory: the layout's parts against each other, ``KvRows`` against rows and cycles of the layout."""

import numpy as np
import pytest
from conftest import MASTER_SEED

from lutra.cosim.benches import kv_rows
from lutra.cosim.harness import Bench
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.ternary import kv_layout
from lutra.hls_models.ternary.attention import AttentionConfig
from lutra.hls_models.ternary.kv_layout import KvLayout
from lutra.hls_models.ternary.memory import PORT_BYTES

LAYOUTS = kv_rows.layouts(MASTER_SEED)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return kv_rows.bench(LAYOUTS)


@pytest.mark.parametrize("run", range(2))
def test_rtl_equals_the_layout(bench: Bench, seed: int, run: int) -> None:
    assert kv_rows.check(bench, LAYOUTS, seed) > 50_000


@pytest.mark.soak
@pytest.mark.parametrize("run", range(20))
def test_rtl_equals_the_layout_often(bench: Bench, seed: int, run: int) -> None:
    assert kv_rows.check(bench, LAYOUTS, seed, tiles=40) > 50_000


def test_a_wrong_latency_is_caught(bench: Bench, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_layout, "KV_ROWS", kv_layout.KV_ROWS + 1)
    with pytest.raises(MismatchError, match=r"c0\.kv_data\[0\]: .* expected cycle"):
        kv_rows.check(bench, LAYOUTS, seed)


def test_a_wrong_scale_is_caught(bench: Bench, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = KvLayout.tile_rows

    def wrong(self: KvLayout, beats: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
        codes, scales = right(self, beats, rows)
        return codes, scales ^ np.uint32(rows == self.key_tile)

    monkeypatch.setattr(KvLayout, "tile_rows", wrong)
    with pytest.raises(MismatchError, match=r"c0\.kv_data\[\d+\]: expected 0x"):
        kv_rows.check(bench, LAYOUTS, seed)


@pytest.fixture(params=[(4, 64, 32), (4, 80, 16), (6, 144, 8), (3, 48, 32), (1, 16, 4), (5, 96, 8), (6, 128, 8)], ids=str)
def layout(request: pytest.FixtureRequest) -> KvLayout:
    ports, head_dim, tile = request.param
    return KvLayout(beat_bytes=ports * PORT_BYTES, layers=2, kv_heads=2, head_dim=head_dim, context=3 * tile, key_tile=tile, base=7)


def test_written_rows_are_what_is_read(layout: KvLayout, rng: np.random.Generator) -> None:
    """Every row through ``writes`` gives ``pack``'s memory, whose tiles in ``order`` have the rows again."""
    shape = (layout.layers, layout.kv_heads, layout.context, 2)
    codes = rng.integers(-128, 128, (*shape, layout.head_dim)).astype(np.int8)
    scales = rng.integers(0, 1 << 32, shape).astype(np.uint32)
    memory = np.zeros((layout.base + layout.beats, layout.beat_bytes), np.uint8)
    config = AttentionConfig(
        heads=2, kv_heads=2, head_dim=layout.head_dim, layers=2, context=layout.context, max_tokens=4, key_tile=layout.key_tile, vector_lanes=16
    )
    for layer, head, position, value in np.ndindex(*shape):
        writes = layout.writes(config.address(layer, head, position, value=bool(value)))
        assert len(writes) == layout.row_writes
        for write in writes:
            where = memory[write.beat, write.lane * PORT_BYTES : (write.lane + 1) * PORT_BYTES]
            row = codes[layer, head, position, value].view(np.uint8)
            new = np.tile(scales[layer, head, position, value : value + 1].view(np.uint8), 4) if write.unit is None else row[write.unit * 16 :][:16]
            mask = np.array([write.strobe >> i & 1 for i in range(PORT_BYTES)], bool)
            where[mask] = new[mask]
    assert (memory[layout.base :].ravel() == layout.pack(codes, scales)).all()
    unpacked = layout.unpack(memory[layout.base :].ravel())
    assert (unpacked[0] == codes).all() and (unpacked[1] == scales).all()
    for tokens, position, serial in ((1, layout.context - 1, False), (3, layout.key_tile - 2, False), (3, layout.key_tile - 2, True)):
        seen = 0
        for tile in layout.order(1, tokens, position, serial=serial):
            index = (tile.address - layout.address(1, tile.head, 0, value=tile.value)) // (2 * layout.block_beats)
            part = slice(index * layout.key_tile, index * layout.key_tile + tile.rows)
            found = layout.tile_rows(memory[tile.address : tile.address + tile.beats], tile.rows)
            assert (found[0] == codes[1, tile.head, part, int(tile.value)]).all()
            assert (found[1] == scales[1, tile.head, part, int(tile.value)]).all()
            seen += tile.rows
        ends = [position + 1 + token for token in range(tokens)]
        assert seen == 2 * layout.kv_heads * (sum(ends) if serial else ends[-1])


def test_rows_are_complete_with_their_last_beat(layout: KvLayout) -> None:
    beats = layout.tile_beats(layout.key_tile)
    assert layout.last_beat(layout.key_tile - 1) == beats - 1 == layout.block_beats - 1
    cycles = layout.row_cycles(np.arange(beats) * 3, layout.key_tile)
    assert (np.diff(cycles) > 0).all() and cycles[-1] == 3 * (beats - 1) + kv_layout.KV_ROWS
