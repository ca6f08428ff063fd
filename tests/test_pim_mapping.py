# SPDX-License-Identifier: Apache-2.0
"""GPT models on the PIM target: shapes, importer, placement, programs."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from lutra.hls_models.errors import ConfigError, ModelError
from lutra.hls_models.load import load_config
from lutra.hls_models.pim.channel import ChannelModel
from lutra.hls_models.pim.companion import check_program
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Command, Macro, MacroKind, Receive, Statistic
from lutra.hls_models.pim.system import SystemModel
from lutra.hls_models.pim.timing import load_timing
from lutra.mapping.catalogue import open_model, shape_names
from lutra.mapping.pim.costs import Costs
from lutra.mapping.pim.importer import load, save
from lutra.mapping.pim.lower import clear, lower
from lutra.mapping.pim.model import GptModel
from lutra.mapping.pim.occupancy import occupancy
from lutra.mapping.pim.partition import Partition, partition
from lutra.mapping.pim.places import Groups, Piece, placements
from lutra.mapping.pim.shape import GptShape

NAMES = [f"gpt{generation}-{size}" for generation in (2, 3) for size in ("small", "medium", "large", "xl")]
GPT = load_config("pim-gpt", PimConfig)
SMALL = load_config("pim-small", PimConfig)


def shape(**changes: object) -> GptShape:
    sizes = {"name": "t", "hidden": 64, "layers": 2, "heads": 2, "head_dim": 32, "ffn": 128, "vocabulary": 67, "context": 128}
    return GptShape.model_validate(sizes | changes)


def named(name: str) -> GptShape:
    found = open_model(name)
    assert isinstance(found, GptShape)
    return found


def changed(config: PimConfig, **changes: object) -> PimConfig:
    return PimConfig.model_validate(config.model_dump() | changes)


# shapes and checkpoints


def test_the_papers_models_by_name() -> None:
    """Parameter counts: Radford et al. 2019 (as released) and table 2.1 of arXiv 2005.14165."""
    assert {*NAMES, "gpt3-xl-24", "bitnet-0.73b"} <= set(shape_names())
    found = {name: named(name) for name in NAMES}
    counts = {"gpt2-small": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}
    assert {name: found[name].parameters for name in counts} == counts
    assert found["gpt3-xl"].linear_weights == 1_207_959_552
    assert named("gpt3-xl-24").query_columns == 3072
    assert found["gpt3-large"].head_dim == 96


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_a_folder_is_what_was_saved(tmp_path: Path, prefix: str) -> None:
    model = GptModel.random(shape(tied=False, head_dim=24, activation="gelu_erf", eps=1e-6), 1)
    save(model, tmp_path / "m", prefix=prefix)
    again = open_model(str(tmp_path / "m"))
    assert isinstance(again, GptModel)
    assert again.shape == model.shape.model_copy(update={"name": "m"})
    for one, other in zip(model.layers, again.layers, strict=True):
        for name in ("query", "key_bias", "value", "output", "up", "down_bias"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert np.array_equal(one.ffn_norm.gain, other.ffn_norm.gain)
    assert np.array_equal(again.head, model.head) and np.array_equal(again.positions, model.positions)
    assert open_model(str(tmp_path / "m" / "config.json")) == again.shape


def rewrite(folder: Path, change: dict[str, tuple[str, np.ndarray] | None]) -> None:
    """Tensors of a folder replaced, added or (None) taken away; the dtype is written as named."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    parts = {
        name: (entry["dtype"], entry["shape"], raw[8 + size + entry["data_offsets"][0] : 8 + size + entry["data_offsets"][1]]) for name, entry in header.items()
    }
    for name, new in change.items():
        if new is None:
            del parts[name]
        else:
            parts[name] = (new[0], list(new[1].shape), new[1].tobytes())
    at, entries = 0, {}
    for name, (dtype, sizes, data) in parts.items():
        entries[name] = {"dtype": dtype, "shape": sizes, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in parts.values()))


def test_half_precision_and_mask_buffers(tmp_path: Path) -> None:
    model = GptModel.random(shape(layers=1), 2)
    save(model, tmp_path, dtype=np.float16, prefix="")
    bits = (model.positions.view(np.uint32) >> 16).astype(np.uint16)
    mask = np.ones((1, 1, 4, 4), np.float32)
    rewrite(tmp_path, {"wpe.weight": ("BF16", bits), "h.0.attn.bias": ("F32", mask), "h.0.attn.masked_bias": ("F32", mask[0, 0, 0, :1])})
    again = load(tmp_path)
    assert np.array_equal(again.positions, (bits.astype(np.uint32) << 16).view(np.float32))
    assert np.array_equal(again.layers[0].up, model.layers[0].up.astype(np.float16).astype(np.float32))


def test_every_wrong_tensor_is_named_at_once(tmp_path: Path) -> None:
    save(GptModel.random(shape(layers=1), 3), tmp_path, prefix="")
    wrong = np.zeros((64, 64), np.float32)
    broken = np.full(64, np.nan, np.float32)
    rewrite(
        tmp_path,
        {
            "h.0.mlp.c_fc.bias": None,
            "h.0.attn.c_attn.weight": ("F32", wrong),
            "h.0.adapter.weight": ("F32", wrong),
            "ln_f.bias": ("F32", broken),
            "ln_f.weight": ("U8", np.zeros(64, np.uint8)),
            "lm_head.weight": ("F32", np.zeros((67, 64), np.float32)),
        },
    )
    with pytest.raises(ModelError) as raised:
        load(tmp_path)
    text = str(raised.value)
    for phrase in (
        "missing tensor h.0.mlp.c_fc.bias",
        "h.0.attn.c_attn.weight must have shape [64, 192], not [64, 64]",
        "unknown tensor h.0.adapter.weight",
        "every value must be finite",
        "ln_f.weight must be BF16, F16, F32, not U8",
        "lm_head.weight must equal wte.weight",
    ):
        assert phrase in text, phrase
    assert "\n" not in text


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"activation_function": "swish"}, "activation_function must be one of gelu_new"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be false, not True"),
        ({"n_embd": 65}, "head_dim must be given where n_head = 2 does not divide n_embd = 65"),
        ({"n_layer": 0}, "n_layer: "),
        ({"n_positions": None}, "missing n_positions"),
        ({"quantization_config": {"bits": 4}}, "quantization_config must be absent"),
    ],
)
def test_a_config_that_is_not_supported(tmp_path: Path, change: dict[str, object], phrase: str) -> None:
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=phrase.replace("(", r"\(")):
        open_model(str(tmp_path / "config.json"))


# placement


def used(p: Partition) -> dict[str, set[tuple[int, int]]]:
    """(bank, column) of everything, per channel alike, by name."""
    width, banks = p.config.columns, p.config.banks

    def groups(one: Groups) -> set[tuple[int, int]]:
        return {(bank, at + i) for at in one.positions() for i in range(one.columns) for bank in range(banks)}

    def pieces(parts: tuple[Piece, ...] | list[Piece]) -> set[tuple[int, int]]:
        return {(piece.bank, piece.row * width + piece.column + i) for piece in parts for i in range(piece.count)}

    found = {"gain": pieces(p.gain.pieces), "bias": pieces(p.bias.pieces)}
    found |= {f"position {i}": pieces(p.position_pieces(i)) for i in range(p.positions)}
    matrices = [p.head, *([] if p.embedding is p.head else [p.embedding])]
    for i, layer in enumerate(p.layers):
        matrices += [layer.joint, layer.output, layer.up, layer.down]
        found |= {f"{i} {name}": pieces(getattr(layer, name).pieces) for name in ("query_bias", "output_bias", "up_bias", "down_bias")}
    found |= {f"{matrix.name} {i}": groups(chunk) for matrix in matrices for i, chunk in enumerate(matrix.chunks)}
    for s, step in enumerate(p.keyvalues):
        for i, layer_places in enumerate(step):
            for j, place in enumerate(layer_places):
                found[f"keys {s} {i} {j}"] = groups(place.keys)
                found |= {f"values {s} {i} {j} {b}": groups(block) for b, block in enumerate(place.values)}
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"columns": 8},
        {"channels": 3, "banks": 2},
        {"columns": 4, "accumulators_per_bank": 8},
        {"channels": 8, "banks": 16},
        {"channels": 1, "banks": 1, "lanes": 4},
    ],
)
def test_nothing_lies_on_anything_else(changes: dict[str, object]) -> None:
    config = changed(SMALL, rows=1 << 14, **changes)
    p = partition(shape(heads=3, head_dim=24, tied=False), config, reservation=256)
    found = used(p)
    taken: dict[tuple[int, int], str] = {}
    for name, cells in found.items():
        for cell in cells:
            assert cell not in taken, f"{name} on {taken.get(cell)} at bank and column {cell}"
            taken[cell] = name
    assert max(column for _, column in taken) < p.rows * config.columns
    ends = [region.row + region.rows for region in p.regions]
    assert [region.row for region in p.regions] == [0, *ends[:-1]]


@pytest.mark.parametrize("name", ["gpt2-small", "gpt3-xl"])
def test_reservations_grow_without_moving_anything(name: str) -> None:
    model = named(name)
    one, two = (partition(model, changed(GPT, rows=1 << 15), tokens=tokens) for tokens in (1024, model.context if model.context > 1024 else 1024))
    assert two.regions[: len(one.regions)] == one.regions
    assert two.keyvalues[: len(one.keyvalues)] == one.keyvalues
    assert (one.layers, one.head, one.passes) == (two.layers, two.head, two.passes)
    assert two.tokens == model.context


def test_placement_is_chosen_by_cycles_not_by_row_hits() -> None:
    """Filling rows loses where every output is read out for itself: GPT-2 small's 768 columns; with 16 accumulators it wins."""
    small = named("gpt2-small")
    one, many = (partition(small, changed(GPT, accumulators_per_bank=n)) for n in (1, 16))
    assert [(chunk.columns, chunk.per_row) for chunk in one.layers[0].joint.chunks] == [(48, 1)]
    assert [(chunk.columns, chunk.per_row) for chunk in many.layers[0].joint.chunks] == [(48, 0)]
    assert occupancy(many, 1).total.row_hit_rate > occupancy(one, 1).total.row_hit_rate
    assert {(p.heads, p.split) for p in one.passes} == {(8, 1), (4, 2)}  # 12 heads: none of 8 channels idle
    assert one.layers[0].down.groups == 6 and len(one.layers[0].down.chunks) == 3


def test_a_pass_has_the_heads_whose_scores_fit() -> None:
    """16 heads of GPT-3 medium's 2,048 positions on 32 channels: scores of 2 x 8 heads exceed the SRAM, those of 2 x 6 do not."""
    made = partition(named("gpt3-medium"), changed(GPT, channels=32), tokens=1024)
    assert [(p.heads, p.split) for p in made.passes] == [(6, 4), (6, 4), (4, 4)]


def command_cycles(config: PimConfig, positions: list[int], count: int, batch: int) -> int:
    """From the first activate until a row could be opened behind the last burst, by the per-command path (every row is open for tRAS)."""
    macros = []
    for i, position in enumerate(positions):
        row, column = divmod(position, config.columns)
        last = i % batch == batch - 1 or i == len(positions) - 1
        macros.append(
            Macro(
                MacroKind.MAC,
                row=row,
                column=column,
                count=count,
                load=min(batch, len(positions) - i) if i and i % batch == 0 else 0,
                read=i % batch + 1 if last else 0,
                accumulator=i % batch,
            )
        )
    timing = load_timing(config.timing)
    commands = ChannelModel(config, timing, 0, macros).run().commands
    cycles = {kind: commands["cycle"][commands["command"] == kind] for kind in (Command.ACTA, Command.MAC)}
    return int(cycles[Command.MAC][-1] - cycles[Command.ACTA][0]) + timing.cycles("tRTP") + timing.cycles("tRP")


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("accumulators", [1, 4])
def test_costs_are_those_of_the_channel(early: bool, accumulators: int) -> None:
    config = changed(GPT, refresh=False, activate_in_register_mode=early, accumulators_per_bank=accumulators)
    costs = Costs.of(config)
    assert costs.row_switch == 226
    for columns, groups in ((64, 3), (48, 33), (8, 59), (5, 14), (60, 100), (1, 4)):
        for cycles, placed in placements(columns, groups, costs):
            assert cycles == costs.bursts(placed.positions(), columns, placed.batch)
            # a macro's first command comes a cycle later than a command within one
            assert 0 <= command_cycles(config, placed.positions(), columns, placed.batch) - cycles <= groups, (columns, placed.per_row)
    ways = placements(64, 8, costs)
    assert [way[0] for way in ways] == sorted(way[0] for way in ways)


def test_a_model_that_does_not_fit_says_by_how_much() -> None:
    words = r"needs \d+ rows per bank \(7\.71 GiB\) however packed, pim-gpt has 16384 \(4\.00 GiB\): 3\.71 GiB too much"
    with pytest.raises(ModelError, match="gpt2-xl: with keys and values of 8192 tokens it " + words):
        partition(named("gpt2-xl"), GPT, tokens=8192)
    with pytest.raises(ModelError, match=r"gpt3-xl: keys and values of 1000448 tokens alone need 183\.19 GiB, pim-gpt has 4\.00 GiB: 179\.19 GiB too much"):
        partition(named("gpt3-xl"), GPT, tokens=10**6)  # at once
    forced = partition(named("gpt2-xl"), GPT, tokens=8192, ignore_capacity=True)
    assert forced.overflow_rows == forced.rows - 16384 > 0 and forced.config.rows == forced.rows
    assert occupancy(forced, 8192).overflow_bytes == forced.overflow_rows * 2**18
    tight = partition(named("gpt2-xl"), changed(GPT, rows=partition(named("gpt2-xl"), GPT).rows - 300))
    assert tight.rows <= tight.config.rows  # made smaller where that loses fewest cycles


def test_reservation_and_sram_are_checked() -> None:
    with pytest.raises(ModelError, match="reservation must be a multiple of 16 tokens, not 1000; nearest legal value 992"):
        partition(named("gpt2-small"), GPT, reservation=1000)
    companion = GPT.companion.model_copy(update={"sram_bytes": 65536})
    with pytest.raises(
        ConfigError, match=r"companion\.sram_bytes must hold attention over 1024 tokens of gpt2-xl \(\d+ bytes\), not 65536; nearest legal value \d+"
    ):
        lower(partition(named("gpt2-xl"), GPT.model_copy(update={"companion": companion})), 1023)


# programs


@pytest.mark.parametrize("name", [*NAMES, "gpt3-xl-24"])
def test_every_shape_becomes_programs(name: str) -> None:
    model = named(name)
    p = partition(model, GPT)
    rng = np.random.default_rng(NAMES.index(name) if name in NAMES else 99)
    for context in (1, int(rng.integers(2, 1024)), 1024):
        program = lower(p, context - 1, int(rng.integers(model.vocabulary)))
        check_program(program.instructions, GPT)
        assert max(macro.row for macro in program.macros[0]) < p.config.rows
        last = [i for i in program.instructions if isinstance(i, Receive)][-1]
        assert last.statistic == Statistic.ARGMAX
        heads = sum(i.valid for i in program.instructions if isinstance(i, Receive) and i.statistic == Statistic.ARGMAX)
        assert heads == model.vocabulary


def test_gpt3_xl_within_a_tenth_of_its_rows() -> None:
    """Blocks and tied head, everything included, refresh off, context 1: at most 1.10 x 10,002 rows x 226 cycles; 1,024: 1.20 of the bound with KV rows."""
    p = partition(named("gpt3-xl"), changed(GPT, refresh=False))
    timing = load_timing("gddr6-aim")
    rows = sum(chunk.rows for matrix in (p.head, *(m for one in p.layers for m in (one.joint, one.output, one.up, one.down))) for chunk in matrix.chunks)
    assert rows == 10_002
    short = SystemModel(p.config, timing, lower(p, 0)).run().cycles
    assert short <= 1.10 * rows * 226
    long = SystemModel(p.config, timing, lower(p, 1023)).run().cycles
    kv_rows = 24 * 2 * 1024 * 2048 // (64 * 16 * 128)
    assert long <= 1.20 * (rows + kv_rows) * 226


@pytest.mark.parametrize(
    "changes", [{}, {"columns": 8}, {"channels": 3, "banks": 2}, {"channels": 1, "banks": 1, "lanes": 4}, {"channels": 4, "banks": 8, "lanes": 8, "columns": 4}]
)
def test_programs_end_with_the_smallest_queues(changes: dict[str, object]) -> None:
    """Read-out queues of two beats, data queues of one buffer: no unit waits for another in a circle."""
    for readout_depth in (2, 64):
        columns = changes.get("columns", SMALL.columns)
        companion = {"sram_bytes": 1 << 20, "readout_depth": readout_depth, "data_depth": columns}
        config = changed(SMALL, rows=1 << 18, companion=companion, **changes)
        p = partition(shape(heads=5, head_dim=12, vocabulary=300, context=300), config, reservation=256)
        for position in (0, 16, 299):
            assert SystemModel(config, load_timing(config.timing), lower(p, position, 5)).run().cycles > 0


def test_wrong_tokens_and_positions() -> None:
    p = partition(shape(), SMALL, reservation=64)
    with pytest.raises(ModelError, match="token must be 0 to 66, not 67"):
        lower(p, 0, 67)
    with pytest.raises(ModelError, match="position must be 0 to 127, not 128: keys and values have room for 128 tokens"):
        lower(p, 128)


def test_clearing_writes_every_value_once() -> None:
    p = partition(shape(), SMALL, reservation=64)
    for step in range(2):
        program = clear(p, step)
        written = [(m.bank, m.row * SMALL.columns + m.column + i) for m in program.macros[0] for i in range(m.count)]
        assert len(written) == len(set(written))
        values = {name: cells for name, cells in used(p).items() if name.startswith(f"values {step} ")}
        assert set().union(*values.values()) <= set(written)


def test_occupancy_counts_what_the_channels_do() -> None:
    p = partition(shape(heads=3, head_dim=24, context=300), SMALL, reservation=256)
    for context in (1, 17, 300):
        program = lower(p, context - 1)
        run = SystemModel(changed(SMALL, refresh=False), load_timing("gddr6-aim"), program).run()
        found = occupancy(p, context)
        assert found.total.commands == sum(channel.counts[Command.MAC] for channel in run.channels)
        assert 0 < found.total.idle_banks < 1
        # scores follow a row of their own kind only by chance: at most one row per burst of a kind is counted twice
        others = sum(channel.counts[Command.WRA] for channel in run.channels)
        opened = sum(channel.counts[Command.ACTA] for channel in run.channels) - others
        assert found.total.rows == opened
