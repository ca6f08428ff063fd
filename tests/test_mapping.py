# SPDX-License-Identifier: Apache-2.0
"""From a graph to a program: tiles, memory image, order of the instructions."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machine import Machine, StuckError

from lutra.hls_models.errors import ConfigError, MismatchError, ModelError
from lutra.hls_models.floats import E8M11, FP32, from_float64, to_float64
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.executor import Executor
from lutra.hls_models.ternary.isa import Instruction, LoadMode, LoadTarget, Operation, Semaphore, Source, Unit, When, executed
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.ternary.trits import RowLayout, matrix_rows, tiles_of, unpack_matrix
from lutra.mapping.catalogue import open_model, shape_names
from lutra.mapping.graph import Embed, Graph, Linear, Norm, build
from lutra.mapping.lower import compile_model
from lutra.mapping.model import TernaryModel, given
from lutra.mapping.passes import apply
from lutra.mapping.place import CACHE
from lutra.mapping.reference import evaluate
from lutra.mapping.schedule import schedule
from lutra.mapping.tiles import build_rows, choose

TINY: dict[str, Any] = {
    **{"name": "tiny", "clock_hz": 5e7, "group": 3, "tables": 6, "columns": 3, "lanes": 2, "vector_lanes": 4, "ring_rows": 512, "max_tile_columns": 400},
    **{"chunk": 8, "key_tile": 32, "beat_bytes": 36, "params_rows": 128, "rope_rows": 128},
}
SMALL: dict[str, Any] = {
    **{"name": "small", "hidden": 48, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 96, "vocabulary": 65, "context": 64},
    **{"activation": "relu2", "eps": 1e-5, "rope_theta": 10000.0},
}
CORES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "full tables": {"half_tables": False, "columns": 1, "max_tile_columns": 64},
    "narrow": {"vector_lanes": 2, "columns": 1, "tables": 1, "lanes": 1, "beat_bytes": 6, "ring_rows": 800, "max_tile_columns": 24, "rope_rows": 256},
    "wide": {"vector_lanes": 8, "tables": 4, "columns": 3, "group": 2, "beat_bytes": 64, "max_tile_columns": 96},
    "few gains": {"params_rows": 15, "columns": 2, "max_tile_columns": 64},
    "stalls": {"columns": 16, "allow_stalls": True, "group": 4},
    "no repeats": {"lanes": 8, "columns": 2, "ring_rows": 2, "chunk": 8, "max_tile_columns": 96},
    "shared": {"beat_bytes": 32, "key_tile": 8, "prefetch_beats": 40, "memory": {"ports": 2, "burst_beats": 8}},
    "little ahead": {"beat_bytes": 16, "key_tile": 16, "prefetch_beats": 3, "columns": 8, "memory": {"ports": 1, "burst_beats": 16}, "allow_stalls": True},
}
MODELS: dict[str, dict[str, Any]] = {
    "bitnet": {},
    "llama": {"activation": "silu", "sub_norms": False, "tied": False, "kv_heads": 1},
    "bitnet of wide heads": {"head_dim": 32},
    "llama of wide heads": {"activation": "silu", "sub_norms": False, "tied": False, "kv_heads": 1, "head_dim": 32},
}


def core_of(name: str) -> CoreConfig:
    return CoreConfig(**{**TINY, **CORES[name]})


def shape_of(name: str) -> ModelShape:
    return ModelShape(**{**SMALL, **MODELS[name]})


CASES = [(c, m) for c in CORES for m in MODELS if m.endswith("wide heads") == ("memory" in CORES[c])]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, seed: int) -> tuple[CoreConfig, TernaryModel, Graph, Program]:
    core, shape = core_of(request.param[0]), shape_of(request.param[1])
    model = TernaryModel.random(shape, seed)
    return core, model, apply(build(model)), compile_model(model, core)


def test_the_image_holds_the_program_and_nothing_overlaps(case: tuple[CoreConfig, TernaryModel, Graph, Program]) -> None:
    core, model, _, program = case
    assert program.decoded() == program.instructions and program.instructions[-1].unit is Unit.END
    assert program.image is not None and len(program.image) == program.beats * core.beat_bytes
    at, align = 0, core.memory.burst_beats if core.memory else 1
    for region in program.regions:
        if region.name == CACHE:
            at = core.program_words * program.word_beats
        assert region.address == -(-at // align) * align and (region.useful_bits > 0 or region.name == CACHE)
        assert region.useful_bits <= 8 * region.beats * core.beat_bytes
        at = region.end
    assert compile_model(model.shape, core).instructions == program.instructions, "cycles must not need weights"
    assert compile_model(model.shape, core).regions == program.regions
    assert len(program.listing().splitlines()) == 1 + len(program.instructions)
    assert len(program.memory_map().splitlines()) == 1 + len(program.regions)


def passes_of(program: Program, last: bool) -> list[Instruction]:
    wanted = executed(2, last)
    return [i for i in program.instructions if i.when in wanted]


def loads(program: Program, target: LoadTarget, last: bool = True) -> list[Instruction]:
    return [i for i in passes_of(program, last) if i.unit is Unit.LOADER and i.fields["target"] == target]


def test_weights_read_back_are_the_graph(case: tuple[CoreConfig, TernaryModel, Graph, Program]) -> None:
    """Only the instructions say what the bytes mean."""
    core, _, graph, program = case
    layout = RowLayout(group=core.group, tables=core.tables, columns=core.columns, beat_bytes=core.beat_bytes)
    stream = np.concatenate([program.read(i.fields["address"], i.fields["beats"]) for i in loads(program, LoadTarget.WEIGHTS)])
    for instruction, node in zip([i for i in program.instructions if i.unit is Unit.LINEAR], graph.all(Linear), strict=True):
        f, m = instruction.fields, node.matrix
        size = matrix_rows(layout, m.outputs, m.inputs, f["tile_columns"]) * layout.row_bytes
        assert f["k_blocks"] == layout.blocks(m.inputs) and f["columns"] == m.outputs
        np.testing.assert_array_equal(unpack_matrix(stream[:size], layout, m.outputs, m.inputs, f["tile_columns"]), m.known())
        stream = stream[size:]
    assert not len(stream)


def rows_of(core: CoreConfig, program: Program, load: Instruction) -> np.ndarray:
    """Valid rows of a params or rope load: uint32 (rows, V)."""
    row_bytes = 3 * core.vector_lanes
    beats = program.read(load.fields["address"], load.fields["beats"]).reshape(-1, core.beat_bytes)
    rows = beats[:, : core.params_rows_per_beat * row_bytes].reshape(-1, row_bytes)[: load.fields["rows"]]
    return np.pad(rows.reshape(len(rows), -1, 3), ((0, 0), (0, 0), (0, 1))).view("<u4")[..., 0]


@pytest.mark.parametrize("last", [True, False])
def test_parameters_read_back(case: tuple[CoreConfig, TernaryModel, Graph, Program], last: bool) -> None:
    core, _, graph, program = case
    stream = np.concatenate([rows_of(core, program, i) for i in loads(program, LoadTarget.PARAMS, last)])
    header, norms, matrices = -(-160 // (24 * core.vector_lanes)), iter(graph.all(Norm)), iter(graph.all(Linear))
    for f in (i.fields for i in passes_of(program, last) if i.unit is Unit.VECTOR):
        word = sum(int(v) << 24 * i for i, v in enumerate(stream[:header].ravel()))
        values = to_float64(FP32, np.array([word >> 32 * i & 0xFFFFFFFF for i in range(5)], np.uint32))
        stream, width = stream[header:], f["columns"] // (2 if f["operation"] == Operation.GATE else 1)
        scales = next(matrices).matrix.scales if f["source"] == Source.SUMS else ()
        np.testing.assert_allclose(values[: len(scales)], scales, rtol=2**-23)
        assert values[4] == np.float32(graph.shape.eps) and values[3] == (np.float32(1 / width) if f["norm"] else 0)
        if f["norm"]:
            count = width // core.vector_lanes
            np.testing.assert_array_equal(to_float64(E8M11, stream[:count].ravel()), given(next(norms).gains))
            stream = stream[count:]
    assert not len(stream) and next(norms, None) is None and next(matrices, None) is None


def test_tables_read_back(case: tuple[CoreConfig, TernaryModel, Graph, Program]) -> None:
    core, _, graph, program = case
    shape, first = graph.shape, -(-4 // core.vector_lanes) * core.vector_lanes
    (embed,), (head,), table = loads(program, LoadTarget.EMBED), loads(program, LoadTarget.HEAD), graph.all(Embed)[0].table
    row_beats = embed.fields["beats"]
    data = program.read(embed.fields["address"], shape.vocabulary * row_beats).reshape(shape.vocabulary, -1)
    np.testing.assert_array_equal(np.ascontiguousarray(data[:, :4]).view("<f4")[:, 0], given(table.scales))
    np.testing.assert_array_equal(data[:, first : first + shape.hidden].view(np.int8), table.known())
    assert (head.fields["address"] == embed.fields["address"]) == shape.tied and head.fields["beats"] == shape.vocabulary * row_beats
    rope = loads(program, LoadTarget.ROPE)
    assert len(rope) == shape.layers and {i.fields["address"] for i in rope} == {program.region("rope").address}
    beats = rope[0].fields["beats"]
    for position in (0, 1, shape.context - 1):
        at = rope[0]._replace(fields=rope[0].fields | {"address": rope[0].fields["address"] + position * beats})
        cos, sin = rows_of(core, program, at).reshape(-1, 2).T
        angle = position * shape.rope_theta ** (-2 * np.arange(shape.head_dim // 2) / shape.head_dim)
        np.testing.assert_array_equal(cos, from_float64(E8M11, np.cos(angle)))
        np.testing.assert_array_equal(sin, from_float64(E8M11, np.sin(angle)))


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("last", [True, False])
def test_no_order_of_arrival_locks_the_core(case: tuple[CoreConfig, TernaryModel, Graph, Program], depth: int, last: bool) -> None:
    core, model, _, program = case
    machine = Machine(core, model.shape, passes_of(program, last), depth)
    machine.run()
    assert not +machine.held and not machine.values and not machine.offered
    assert +machine.semaphores == ({Semaphore.TOKEN: 1} if last else {})


def test_gains_that_do_not_fit_are_loaded_tile_by_tile() -> None:
    core = core_of("few gains")
    program = compile_model(shape_of("bitnet"), core)
    split = [label for label in program.labels if label.endswith("gate_up.weights")]
    assert len(split) > 2 and max(i.fields["rows"] for i in loads(program, LoadTarget.PARAMS)) <= core.params_rows
    at = program.labels.index("layers.0.gate_up")
    kinds = [i.fields["target"] if i.unit is Unit.LOADER else i.unit.name for i in program.instructions[at - 2 : at + 4]]
    assert kinds == [LoadTarget.PARAMS, LoadTarget.WEIGHTS, "LINEAR", "VECTOR", LoadTarget.PARAMS, LoadTarget.WEIGHTS]


def test_weights_before_parameters_would_lock_it(seed: int) -> None:
    """The check above can fail: with the two loads of a layer exchanged the ring fills while VECTOR waits."""
    core, shape = core_of("tiny"), ModelShape(**{**SMALL, "ffn": 192, "hidden": 160, "head_dim": 40})
    order = passes_of(compile_model(shape, core), True)
    at = next(k for k, i in enumerate(order) if i.unit is Unit.VECTOR and i.fields["operation"] == Operation.GATE) - 3
    assert [i.fields["target"] for i in order[at : at + 2]] == [LoadTarget.PARAMS, LoadTarget.WEIGHTS]
    Machine(replace_ring(core, 300), shape, order, 4).run()
    order[at : at + 2] = order[at + 1], order[at]
    with pytest.raises(StuckError):
        Machine(replace_ring(core, 300), shape, order, 4).run()


def test_keys_and_values_before_parameters_would_lock_it(seed: int) -> None:
    """On a shared memory they are a load that waits for room in ATTEND, whose values wait for VECTOR's parameters."""
    core, shape = core_of("shared"), shape_of("bitnet of wide heads")
    order = passes_of(compile_model(shape, core), True)
    at = next(k for k, i in enumerate(order) if i.unit is Unit.ATTEND)
    targets = [LoadTarget(i.fields["target"]).name if i.unit is Unit.LOADER else i.unit.name for i in order[at : at + 8]]
    assert targets == ["ATTEND", "PARAMS", "PARAMS", "WEIGHTS", "KV", "VECTOR", "WEIGHTS", "LINEAR"]
    kv = order[at + 4]
    assert kv.fields["mode"] == LoadMode.TILES and kv.wait == Semaphore.STORED and not order[at].signal
    Machine(core, shape, order, 4).run()
    order[at + 1], order[at + 4] = order[at + 4], order[at + 1]
    with pytest.raises(StuckError):
        Machine(core, shape, order, 4).run()


def test_the_cache_lies_behind_the_program() -> None:
    core, shape = core_of("shared"), shape_of("bitnet of wide heads")
    program, layout = compile_model(shape, core), CoreSpec(config=core, shape=shape).kv_layout
    cache = program.region(CACHE)
    assert (cache.address, cache.beats) == (layout.base, layout.beats) and layout.base % 8 == 0
    assert [i.fields["address"] for i in loads(program, LoadTarget.KV)] == [layout.address(layer, 0, 0, value=False) for layer in range(shape.layers)]


@pytest.mark.parametrize(("prefetch", "ring", "beats"), [(40, 512, 40), (50, 512, 48), (5, 512, 5), (500, 512, 120), (500, 200, 96)])
def test_what_is_loaded_before_keys_and_values(prefetch: int, ring: int, beats: int) -> None:
    """Whole bursts where there is one, at most half of the ring and all rows but one."""
    core = CoreConfig(**{**TINY, **CORES["shared"], "prefetch_beats": prefetch, "ring_rows": ring})
    program = compile_model(shape_of("bitnet of wide heads"), core)
    first, rest = (i.fields for i, label in zip(program.instructions, program.labels, strict=True) if label == "load layers.0.o.weights")
    assert first["beats"] == beats and rest["address"] == first["address"] + beats
    assert first["beats"] + rest["beats"] == program.region("layers.0.o.weights").beats


def replace_ring(core: CoreConfig, rows: int) -> CoreConfig:
    return core.model_copy(update={"ring_rows": rows})


def test_order_of_a_pass(seed: int) -> None:
    program = compile_model(shape_of("bitnet"), core_of("tiny"))
    units = [i.unit.name for i in passes_of(program, True) if i.unit is not Unit.LOADER]
    layer = ["LINEAR", "VECTOR", "ATTEND", "VECTOR", "LINEAR", "VECTOR", "LINEAR", "VECTOR", "LINEAR", "VECTOR"]
    assert units == ["VECTOR", *layer, *layer, "HEAD", "END"]
    first, final = loads(program, LoadTarget.EMBED)[0], [i for i in program.instructions if i.when is not When.ALWAYS]
    assert first.wait == Semaphore.TOKEN and first.fields["mode"] == LoadMode.TOKEN
    assert Counter((i.unit, i.when) for i in final) == {
        (Unit.LOADER, When.LAST): 2,
        (Unit.LOADER, When.NOT_LAST): 1,
        (Unit.VECTOR, When.LAST): 1,
        (Unit.VECTOR, When.NOT_LAST): 1,
        (Unit.HEAD, When.LAST): 1,
    }
    signals = Counter(i.signal for i in passes_of(program, True))
    assert signals[Semaphore.CODES] == sum(i.unit is Unit.LINEAR for i in program.instructions) and signals[Semaphore.FINAL] == signals[Semaphore.TOKEN] == 1


@pytest.mark.parametrize("model_name", MODELS)
def test_golden_core_agrees_with_the_graph(model_name: str, seed: int) -> None:
    """The executor reads image and instructions only; what remains is its narrower arithmetic and int8 attention."""
    core, shape = core_of("tiny"), shape_of(model_name)
    model = TernaryModel.random(shape, seed)
    executor = Executor(CoreSpec(config=core, shape=shape), compile_model(model, core))
    ids = np.random.default_rng(seed).integers(0, 65, 16)
    wanted = evaluate(apply(build(model)), ids)
    got = np.concatenate([executor.run_pass(ids[at : at + 8].tolist(), at, at == 8, scores=True).logits() for at in (0, 8)])
    assert np.sqrt(((got - wanted) ** 2).mean() / (wanted**2).mean()) < 0.06


def test_tiles_fit_and_waste_least(rng: np.random.Generator) -> None:
    for _ in range(60):
        core = CoreConfig(**{**TINY, "columns": int(rng.integers(1, 24)), "ring_rows": int(rng.integers(64, 900)), "allow_stalls": True})
        columns, inputs, unit = 4 * int(rng.integers(4, 200)), int(rng.integers(20, 500)), int(rng.choice([4, 8]))
        columns -= columns % unit
        try:
            tiling = choose(core, "m", columns, inputs, unit, columns)
        except ConfigError as error:
            assert f"nearest: {-(-unit // core.columns) * -(-inputs // 18)}" in str(error)
            continue
        rows = [tiling.rows(t) for t in range(tiling.tiles)]
        assert tiling.tile_columns % unit == 0 and tiling.tile_columns <= core.max_tile_columns and max(rows) <= core.ring_rows
        layout = RowLayout(group=3, tables=6, columns=core.columns, beat_bytes=36)
        assert sum(rows) == matrix_rows(layout, columns, inputs, tiling.tile_columns)

        def clocks(tile: int, k: int = tiling.k_blocks, need: int = build_rows(core), q: int = core.columns, n: int = columns) -> int:
            return sum(k * max(-(-part // q), need) for part in tiles_of(n, tile))

        same = [t for t in range(unit, min(columns, 400) + 1, unit) if 2 * tiling.k_blocks * -(-t // core.columns) <= core.ring_rows]
        assert all(clocks(tiling.tile_columns) <= clocks(t) for t in same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vector_lanes": 16, "beat_bytes": 64, "columns": 2}, "vector_lanes must divide the model's head_dim = 8, not 16; nearest: 8"),
        ({"rope_rows": 8}, "rope_rows must hold chunk x head_dim / vector_lanes = 16 rows, not 8; nearest: 16"),
        ({"params_rows": 10}, "params_rows must hold the header and 12 rows of gains, not 10; nearest: 15"),
        ({"program_words": 16}, r"program_words must hold the \d+ instructions of small, not 16; nearest: \d+"),
        ({"columns": 40}, r"layers.0.qkv: columns must leave 15 lookups per table build \(64 matrix columns\), not 40; nearest: 4, or allow_stalls"),
        ({"ring_rows": 2}, r"ring_rows must hold the smallest tile \(8 columns, 3 k-blocks\), not 2; nearest: 9"),
        ({"columns": 3, "ring_rows": 20}, "lookups wait for table builds .* max_tile_columns 400 and ring_rows 20; nearest: 400 and 66, or allow_stalls"),
        ({"columns": 3, "max_tile_columns": 4}, r"max_tile_columns must be at least 8 \(whole heads and beats\), not 4; nearest: 8"),
    ],
)
def test_cores_that_cannot_hold_the_model(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        compile_model(shape_of("bitnet"), CoreConfig(**{**TINY, **change}))
    assert "\n" not in str(caught.value)


def test_the_nearest_values_are_legal() -> None:
    for change in ({"params_rows": 15}, {"columns": 4}, {"rope_rows": 16}, {"ring_rows": 66}):
        core = CoreConfig(**{**TINY, **change})
        assert choose(core, "qkv", 64, 48, 8, 64).tile_columns
    compile_model(shape_of("bitnet"), CoreConfig(**{**TINY, "params_rows": 15}))


def test_a_program_survives_its_folder(tmp_path: Path, seed: int) -> None:
    program = compile_model(TernaryModel.random(shape_of("bitnet"), seed), core_of("tiny"))
    program.save(tmp_path / "run")
    back = Program.load(tmp_path / "run")
    assert (back.shape, back.instructions, back.labels, back.regions) == (program.shape, program.instructions, program.labels, program.regions)
    np.testing.assert_array_equal(given(back.image), given(program.image))
    with pytest.raises(ModelError, match=r"no usable program\.json"):
        Program.load(tmp_path)
    (tmp_path / "program.json").write_text('{"instructions": []}')
    with pytest.raises(ModelError, match=r"no usable program\.json \(KeyError: 'shape'\)"):
        Program.load(tmp_path)
    with pytest.raises(ModelError, match="only the shape is known"):
        compile_model(shape_of("bitnet"), core_of("tiny")).read(0, 1)


def test_two_compilations_are_equal(seed: int) -> None:
    a, b = (compile_model(TernaryModel.random(shape_of("bitnet"), seed), core_of("tiny")) for _ in range(2))
    assert a.listing() == b.listing() and given(a.image).tobytes() == given(b.image).tobytes()


def test_scheduling_wants_every_pass(seed: int) -> None:
    with pytest.raises(ValueError, match="run every pass before scheduling"):
        schedule(build(shape_of("bitnet")), core_of("tiny"))


def test_compiling_can_check_its_passes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TernaryModel.random(shape_of("bitnet"), seed)
    compile_model(model, core_of("tiny"), check=np.arange(20))
    from lutra.mapping import passes

    broken = tuple(replace(step, bound=-1.0) for step in passes.PASSES)
    monkeypatch.setattr(passes.apply, "__defaults__", (broken, None))
    with pytest.raises(MismatchError, match="pass fuse_qkv"):
        compile_model(model, core_of("tiny"), check=np.arange(20))


def test_shipped_shapes() -> None:
    large, two = open_model("bitnet-0.73b"), open_model("bitnet-2b4t")
    assert isinstance(large, ModelShape) and isinstance(two, ModelShape)
    assert set(shape_names()) >= {"bitnet-0.73b", "bitnet-2b4t"}
    # published: 679,477,248 linear weights and 49,155,072 of the embedding; 2,412,820,480 parameters
    assert large.ternary_weights == 679_477_248 and large.vocabulary * large.hidden == 49_155_072
    assert two.ternary_weights == 2_084_044_800 and two.parameters == 2_412_820_480


@pytest.mark.parametrize("name", ["bitnet-0.73b", "bitnet-2b4t"])
def test_large_shapes_compile_without_weights(name: str) -> None:
    change = {"tables": 32, "columns": 15, "lanes": 4, "vector_lanes": 8, "ring_rows": 8192, "max_tile_columns": 1024, "chunk": 32, "beat_bytes": 64}
    shape = open_model(name)
    assert isinstance(shape, ModelShape)
    program = compile_model(shape, CoreConfig(**{**TINY, **change, "params_rows": 1024, "rope_rows": 1024, "program_words": 1024}))
    assert program.image is None
    assert sum(r.beats for r in program.regions if "weights" in r.name) * 64 * 8 / shape.ternary_weights < 1.8


def test_what_a_model_may_be(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing: no such model; shipped are .*bitnet-2b4t"):
        open_model("nothing")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"\.onnx files are not supported; supported are a folder .*, a \.gguf file, or"):
        open_model(str(tmp_path / "model.onnx"))
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ModelError, match="missing hidden_size"):
        open_model(str(tmp_path / "config.json"))
