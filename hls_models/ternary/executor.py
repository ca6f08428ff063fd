# SPDX-License-Identifier: Apache-2.0
"""Golden executor of the ternary core: runs a program's instructions in numpy, bit for bit what the RTL computes, beat for beat in its order.

It reads the memory image and the decoded instructions, nothing else of the model.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.errors import ModelError
from lutra.hls_models.floats import FP32, to_float64
from lutra.hls_models.streams import pack
from lutra.hls_models.ternary.attention import ADDRESS_BITS, KvCache, attend, read_addresses, write_addresses
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.drafts import NgramDrafts, speculate
from lutra.hls_models.ternary.isa import Destination, Instruction, LoadMode, LoadTarget, Operation, Source, Unit, executed
from lutra.hls_models.ternary.kept import Kept
from lutra.hls_models.ternary.kv_layout import KvTile
from lutra.hls_models.ternary.loader import PARAM_BITS, Load
from lutra.hls_models.ternary.planes import Lists
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.ternary.shared_words import SharedWords
from lutra.hls_models.ternary.trits import RowLayout, indices_of_rows, tiles_of, unpack_matrix
from lutra.hls_models.ternary.vector import HEADER_BITS, Parameters, Requantised, Vector, to_beats

__all__ = ["Executor", "Pass", "Sink", "plan_passes"]

Bits = NDArray[np.uint32]
Sink = Callable[[str, str, Bits], None]
"""Takes the payload words of an instruction's beats at a boundary, in order: (boundary, label of the instruction, (beats, words) uint32)."""

KEPT_BYTES = 1 << 30
"""Of unpacked matrices: what the layers of a large model take by the gigabyte is unpacked again in every pass."""


@dataclass
class Pass:
    """One pass: ``tokens`` tokens, ``ids``, from ``position``; ``last``: it ends with a choice. ``token``: the choice; ``best``: (ids, fp32
    scores), best first.

    ``serial``: every token attends alone and gets a choice, in ``choices``; ``token`` and ``best`` are the last one's. ``accepted``: of a pass that
    verified drafts, the choices that belong to the text.
    ``streams``: per boundary the payload words of every beat, (beats, words) uint32 for each instruction, in order; ``sources``: the labels of these
    instructions (both only when recorded, and by no other ``Sink``).
    ``scores``: fp32 patterns (tokens, vocabulary) of all tokens (only when asked for), ``activation_scale`` fp32 patterns (tokens,).
    """

    position: int
    tokens: int
    last: bool
    serial: bool = False
    ids: list[int] = field(default_factory=list)
    token: int | None = None
    choices: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    best: tuple[NDArray[np.int64], Bits] | None = None
    scores: Bits | None = None
    activation_scale: Bits | None = None
    lists: Lists | None = None
    streams: dict[str, list[Bits]] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)

    def keep(self, name: str, label: str, words: Bits) -> None:
        """The ``Sink`` of ``streams`` and ``sources``."""
        self.streams.setdefault(name, []).append(words)
        self.sources.setdefault(name, []).append(label)

    def logits(self) -> NDArray[np.float64]:
        """(tokens, vocabulary) logits: scores times the activation scale."""
        if self.scores is None or self.activation_scale is None:
            raise ValueError("the pass was run without scores")
        return to_float64(FP32, self.scores) * to_float64(FP32, self.activation_scale)[:, None]


def _freed(tiles: list[KvTile]) -> Bits:
    return np.ones((len(tiles), 1), np.uint32)


def plan_passes(start: int, prompt: int, chunk: int) -> Iterator[tuple[int, int, bool]]:
    """(position, tokens, last) of the passes that the sequencer makes of a prompt."""
    end = start + prompt
    while start < end:
        n = min(chunk, end - start)
        yield start, n, start + n == end
        start += n


class Executor:
    """Golden core with its state: residual stream, scales and key/value cache.

    Parameters
    ----------
    spec : the core
    program : a compiled model with its memory image
    """

    def __init__(self, spec: CoreSpec, program: Program) -> None:
        if program.image is None:
            raise ModelError(f"{program.shape.name}: values need weights, and only the shape is known")
        self.spec, self.program = spec, program
        self.instructions = program.decoded()
        self.layout = RowLayout(group=spec.config.group, tables=spec.config.tables, columns=spec.config.columns, beat_bytes=spec.config.beat_bytes)
        self.vector = Vector(spec.vector)
        self.cache = KvCache.empty(spec.attention)
        self._shared = SharedWords(spec, self._image, self.cache) if spec.config.memory else None
        if self._shared:
            self._read_cache()
        self._kept = Kept(KEPT_BYTES)
        self._run: dict[Unit, Callable[[Instruction], None]] = {
            Unit.LOADER: self._load,
            Unit.LINEAR: self._linear,
            Unit.VECTOR: self._vector,
            Unit.ATTEND: self._attend,
            Unit.HEAD: self._head,
        }

    @cached_property
    def _image(self) -> NDArray[np.uint8]:
        assert self.program.image is not None
        return np.asarray(self.program.image).reshape(-1, self.program.beat_bytes)

    def _read_cache(self) -> None:
        """Keys and values that a shared memory holds from the start."""
        layers = self.program.shape.layers
        layout = self.spec.kv_layout.model_copy(update={"layers": layers})
        cells = self._image[layout.base : layout.base + layout.beats]
        if cells.any():
            self.cache.codes[:layers], self.cache.scales[:layers] = layout.unpack(cells.reshape(-1))

    def generate(self, prompt: list[int], count: int, *, start: int = 0, stop: int | None = None, record: bool | Sink = False) -> Iterator[Pass]:
        """Prefills ``prompt`` at ``start`` and decodes ``count`` tokens greedily, one ``Pass`` after another, as the sequencer does; ``record``: as of a pass.

        Raises
        ------
        ModelError
            The prompt is empty, has an unknown id, or outgrows the context.
        """
        self.check_prompt(prompt, start)
        ids = list(prompt)
        for position, n, last in plan_passes(start, len(prompt), self.spec.config.chunk):
            done = self.run_pass(ids[position - start : position - start + n], position, last, record=record)
            yield done
        position = start + len(prompt)
        for _ in range(count - 1):
            if done.token == stop or position >= self.spec.shape.context:
                return
            assert done.token is not None
            done = self.run_pass([done.token], position, True, record=record)
            yield done
            position += 1

    def verify(self, ids: list[int], position: int, *, record: bool | Sink = False) -> Pass:
        """A serial pass: the choice behind each of ``ids`` at ``position``, as decoding them one by one would make it.

        Raises
        ------
        ModelError
            More ids than the core scores together, none, an unknown one, or the context is too short.
        """
        self.check_prompt(ids, position)
        if len(ids) > self.spec.config.draft_lanes:
            raise ModelError(f"a serial pass takes at most draft_lanes = {self.spec.config.draft_lanes} tokens, not {len(ids)}")
        return self.run_pass(ids, position, True, serial=True, record=record)

    def speculate(self, prompt: list[int], count: int, drafter: NgramDrafts, *, drafts: int | None = None, stop: Collection[int] = ()) -> Iterator[Pass]:
        """As ``generate``, with serial passes that verify up to ``drafts`` drafts (default: as many as the core takes): ``accepted`` of all passes is the
        text, at most ``count`` tokens."""
        for done in self.generate(prompt, 1):
            done.accepted = done.choices
            yield done
        verified: list[Pass] = []

        def verify(ids: list[int], position: int) -> list[int]:
            verified.append(self.verify(ids, position))
            return verified[-1].choices

        assert done.token is not None
        room = self.spec.shape.context - len(prompt) + 1
        lanes = self.spec.config.draft_lanes if drafts is None else drafts + 1
        for tokens in speculate(prompt, done.token, min(count, room), lanes, verify, drafter, stop=stop):
            verified[-1].accepted = tokens
            yield verified[-1]

    def check_prompt(self, prompt: list[int], start: int = 0) -> None:
        """ModelError where the core cannot take the prompt."""
        shape = self.spec.shape
        if not prompt:
            raise ModelError("prompt must have at least one token")
        if start + len(prompt) > shape.context:
            excess = start + len(prompt) - shape.context
            raise ModelError(f"prompt must fit the context of {shape.context} tokens, not {start + len(prompt)}; shorten it by {excess}")
        bad = [i for i in prompt if not 0 <= i < shape.vocabulary]
        if bad:
            raise ModelError(f"prompt ids must be in 0 … {shape.vocabulary - 1}, not {bad[0]}")

    def run_pass(self, ids: list[int], position: int, last: bool, *, serial: bool = False, record: bool | Sink = False, scores: bool = False) -> Pass:
        """One pass over ``ids`` at ``position``; ``record``: payload words go to this sink, or into the ``Pass``."""
        self._pass = Pass(position, len(ids), last, serial, list(ids))
        self._sink: Sink | None = (self._pass.keep if record else None) if isinstance(record, bool) else record
        self._ids = np.asarray(ids, np.int64)
        self._weights: deque[tuple[int, int]] = deque()
        self._params: deque[Bits] = deque()
        self._rope: deque[Bits] = deque()
        self._embed: deque[tuple[NDArray[np.int8], Bits]] = deque()
        self._table: deque[Load] = deque()
        self._sums: Any = None
        self._values: Any = None
        whens = executed(len(ids), last)
        for instruction, label in zip(self.instructions, self.program.labels, strict=True):
            self._label = label
            if instruction.when in whens and instruction.unit is not Unit.END:
                self._run[instruction.unit](instruction)
        if scores:
            self._all_scores()
        return self._pass

    def _emit(self, name: str, words: Callable[[], Bits]) -> None:
        if self._sink:
            self._sink(name, self._label, words())

    def _load(self, instruction: Instruction) -> None:
        config = self.spec.loader
        f = instruction.fields
        one = self._pass
        load = Load(LoadTarget(f["target"]), LoadMode(f["mode"]), f["address"], f["beats"], f["rows"], one.tokens, one.position, one.serial)
        lists = self._choose(load) if load.target == LoadTarget.PLANES else None
        if shared := self._shared:
            self._emit("bursts", lambda: shared.bursts(load, self._ids, lists))
            self._emit("data", lambda: shared.data(load, self._ids, lists))
            if lists is not None:
                self._emit("head_rows", lambda: shared.data(load, self._ids, lists))
                return
            if load.target == LoadTarget.KV:
                self._emit("kv", lambda: shared.kv(load))
                self._emit("kv_data", lambda: shared.kv_data(load))
                for name, value in (("k_freed", False), ("v_freed", True)):
                    self._emit(name, partial(_freed, [tile for tile in config.tiles(load) if tile.value == value]))
                return
        if load.target == LoadTarget.WEIGHTS:
            self._weights.append((load.address, load.beats))
            self._emit("weights", lambda: self._beat_words(self._image[load.address : load.address + load.beats]))
            return
        if load.target == LoadTarget.HEAD:
            self._table.append(load)
            self._emit("head_rows", lambda: self._beat_words(self._image[load.address : load.address + load.beats]))
            return
        beats = self._image[config.addresses(load, self._ids)]
        if load.target == LoadTarget.EMBED:
            codes, scales = config.embedding(load, beats)
            self._embed.append((codes, scales))
            lanes = config.vector_lanes
            self._emit("embed", lambda: pack((codes.reshape(-1, lanes), 8), (np.repeat(scales, codes.shape[1] // lanes), 32)))
            return
        rows = config.rows(load, beats)
        (self._params if load.target == LoadTarget.PARAMS else self._rope).extend(rows)
        self._emit(load.target.name.lower(), lambda: pack((rows, PARAM_BITS)))

    def _beat_words(self, beats: NDArray[np.uint8]) -> Bits:
        spare = -beats.shape[1] % 4
        return np.ascontiguousarray(np.pad(beats, ((0, 0), (0, spare))) if spare else beats).view("<u4")

    def _matrix(self, f: dict[str, int]) -> tuple[Any, ...]:
        """Weights as float32 (N, K), exact in a float32 product, the bytes that they are stored in, and a key for what follows from these."""
        rows = f["k_blocks"] * sum(self.layout.tile_rows(t) for t in tiles_of(f["columns"], f["tile_columns"]))
        loads, need = [], rows * self.layout.row_beats
        while need > 0:
            loads.append(self._weights.popleft())
            need -= loads[-1][1]
        key = (tuple(loads), f["columns"], f["tile_columns"])

        def unpacked() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
            stored = np.concatenate([self._image[address : address + beats] for address, beats in loads]).reshape(-1)
            weights = unpack_matrix(stored, self.layout, f["columns"], f["k_blocks"] * self.layout.block, f["tile_columns"])
            return weights.astype(np.float32), stored

        return *self._kept.get(key, unpacked), key

    def _linear(self, instruction: Instruction) -> None:
        f, config = instruction.fields, self.spec.config
        weights, stored, key = self._matrix(f)
        codes = self._codes
        padded = np.zeros((len(codes), weights.shape[1]), np.float32)
        padded[:, : codes.shape[1]] = codes
        # |sum| <= 127 * K < 2^24: exact in float32 (CoreSpec's widths guarantee it up to K = 131,072).
        self._sums = (padded @ weights.T).astype(np.int64)
        lanes = config.vector_lanes
        self._emit("sums", lambda: pack((to_beats(self._sums, f["tile_columns"], lanes), self.spec.tlmm.accumulator_bits)))
        self._emit("rows", lambda: self._row_words(f, stored, key))

    def _row_words(self, f: dict[str, int], stored: NDArray[np.uint8], key: tuple[Any, ...]) -> Bits:
        """Index rows in reading order: a tile's rows once per token group."""
        groups = -(-self._pass.tokens // self.spec.config.lanes)

        def packed() -> tuple[Bits]:
            return (pack((indices_of_rows(stored, self.layout, self.spec.config.half_tables), self.spec.weights.index_bits)),)

        words: Any = self._kept.get(("rows", key), packed)[0]
        out, first = [], 0
        for tile in tiles_of(f["columns"], f["tile_columns"]):
            count = f["k_blocks"] * self.layout.tile_rows(tile)
            out += [words[first : first + count]] * groups
            first += count
        return np.concatenate(out)

    def _parameters(self, f: dict[str, int]) -> Parameters:
        config = self.spec.vector
        header = [self._params.popleft() for _ in range(config.header_rows)]
        word = sum(int(value) << PARAM_BITS * i for i, value in enumerate(np.concatenate(header)))
        values = [word >> 32 * i & 0xFFFFFFFF for i in range(HEADER_BITS // 32)]
        gains = None
        if f["norm"]:
            columns = f["columns"] >> (f["operation"] == Operation.GATE)
            gains = np.concatenate([self._params.popleft() for _ in range(columns // config.lanes)])
        return Parameters(np.array(values[:3], np.uint32), values[3], values[4], gains)

    def _vector(self, instruction: Instruction) -> None:
        f, n, config = instruction.fields, self._pass.tokens, self.spec.vector
        given: dict[str, Any] = {"params": self._parameters(f)}
        if f["source"] == Source.SUMS:
            given["sums"] = self._sums
        elif f["source"] == Source.VALUES:
            given["values"] = self._values
        else:
            given["embed"] = self._embed.popleft()
        if f["operation"] == Operation.ROPE:
            rows = [self._rope.popleft() for _ in range(n * config.head_dim // config.lanes)]
            given["rope_pairs"] = np.concatenate(rows).reshape(n, -1, 2)
        result = self.vector.run(f, n, **given)
        self._emit("codes", lambda: self._code_words(f, result))
        if f["destination"] == Destination.ATTEND:
            self._qkv = result
        else:
            self._codes, self._code_scales = result.codes.astype(np.int8, copy=False), result.scales

    def _code_words(self, f: dict[str, int], result: Requantised) -> Bits:
        beats = result.beats(self.spec.config.vector_lanes)
        n, groups, per_group, lanes = beats.shape
        token, group, beat = (index.reshape(-1) for index in np.indices((n, groups, per_group)))
        group_last = beat == per_group - 1
        return pack(
            (beats.reshape(-1, lanes), self.spec.vector.code_bits),
            (np.repeat(result.scales.reshape(-1), per_group), 32),
            (np.full(len(token), f["destination"]), 2),
            (token, 8),
            (group, 8),
            (group_last & (group == groups - 1), 1),
            (group_last, 1),
        )

    def _attend(self, instruction: Instruction) -> None:
        shape, n, layer = self.spec.shape, self._pass.tokens, instruction.fields["layer"]
        codes = self._qkv.codes.reshape(n, -1, shape.head_dim)
        scales, heads = self._qkv.scales, shape.heads
        config, position, serial = self.spec.attention, self._pass.position, self._pass.serial
        self.cache.store(layer, position, codes[:, heads:], scales[:, heads:])
        parts = [slice(token, token + 1) for token in range(n)] if serial else [slice(0, n)]
        self._values = np.concatenate([attend(config, codes[part, :heads], scales[part, :heads], self.cache, layer, position + part.start) for part in parts])
        lanes, width = self.spec.config.vector_lanes, shape.group * shape.head_dim
        where = (config, layer, n, position)
        self._emit("kv_write", lambda: self.cache.rows(write_addresses(*where), with_address=True))
        if self._sink and self._shared is None:
            reads = read_addresses(*where, serial=serial)
            self._emit("kv_read", lambda: pack((reads, ADDRESS_BITS)))
            self._emit("kv_data", lambda: self.cache.rows(reads))
        # Token after token, as they are attended, is one tile.
        tile = shape.query_columns if serial else width
        self._emit("values", lambda: pack((to_beats(self._values, tile, lanes), self.spec.config.format.bits)))

    def _table_scores(self, load: Load, codes: NDArray[np.int8]) -> Bits:
        """fp32 patterns (rows of ``codes``, vocabulary)."""
        per_row = self.spec.loader.table_beats
        one = load._replace(beats=per_row, tokens=load.beats // per_row, mode=LoadMode.TOKEN)
        return self.spec.head.scores(codes, *self.spec.loader.embedding(one, self._image[load.address : load.address + load.beats]))

    def _choose(self, load: Load) -> Lists:
        """The choice in a table in two planes, whose loading depends on it."""
        planes, config = self.spec.planes, self.spec.loader
        assert planes
        rows = config.plane_rows(load)
        codes, scales = self._kept.get(("planes", load.address), lambda: planes.unpack(self._image[load.address : load.address + planes.beats(rows)], rows))
        found = planes.choose(self._codes[-1], codes.astype(np.int8, copy=False), scales.astype(np.uint32, copy=False), self.spec.head.best)
        self._pass.best, self._pass.lists = (found.ids, found.scores), found.lists
        self._emit("rescore", lambda: planes.words(found.lists))
        return found.lists

    def _head(self, instruction: Instruction) -> None:
        done, n = self._pass, self._pass.tokens
        if instruction.fields["planes"]:
            assert done.best
            (choice, *_), (score, *_) = done.best
            done.token, done.choices = int(choice), [int(choice)]
            done.activation_scale = self.vector.scale[:1].copy()
            self._emit("token", lambda: pack((np.array([choice]), 20), (np.array([score]), 32), (self._code_scales[:, -1], 32)))
            return
        scored = slice(0 if done.serial else n - 1, n)
        scores = self._table_scores(self._table.popleft(), self._codes[scored])
        done.best = self.spec.head.choose(scores[-1])
        done.choices = [int(self.spec.head.choose(one)[0][0]) for one in scores]
        done.token = done.choices[-1]
        done.activation_scale = self.vector.scale[n - 1 : n].copy()
        ids, best = np.array(done.choices), scores[np.arange(len(scores)), done.choices]
        self._emit("token", lambda: pack((ids, 20), (best, 32), (self._code_scales[scored, -1], 32)))

    def _all_scores(self) -> None:
        load = next(i.fields for i in self.instructions if i.unit is Unit.LOADER and i.fields["target"] == LoadTarget.HEAD)
        table = Load(LoadTarget.HEAD, LoadMode.DIRECT, load["address"], load["beats"])
        self._pass.scores = self._table_scores(table, self._codes)
        self._pass.activation_scale = self.vector.scale[: self._pass.tokens].copy()
