# SPDX-License-Identifier: Apache-2.0
"""LOADER: fetches weights, parameters, rotary rows, embeddings and the head's table from memory."""

from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.isa import LoadMode, LoadTarget, Unit
from lutra.hls_models.ternary.loader import JOBS_AHEAD, PARAM_BITS, LoaderConfig
from lutra.rtl.streams import Queue
from lutra.rtl.ternary.dispatch import unit_layout
from lutra.rtl.ternary.head_planes import listed_layout
from lutra.rtl.ternary.loader_issue import EMBED, HEAD, JOB, KV, REQUEST, ROWS, WEIGHTS, Issue, kind_of
from lutra.rtl.ternary.loader_tiles import TileWalker

__all__ = ["Loader", "kv_layout"]


class _Plan(wiring.Component):
    """Turns an instruction into jobs: one, or one per token in modes TOKEN and POSITION, one per tile in mode TILES; of a table in two planes one per segment
    and low row. ``room``: one more may start."""

    def __init__(self, config: LoaderConfig) -> None:
        self._kv, self._planes = config.kv, config.planes
        super().__init__(
            {
                "room": In(1),
                "instr": In(stream.Signature(unit_layout(Unit.LOADER))),
                "id_request": Out(stream.Signature(16)),
                "id": In(stream.Signature(20)),
                "job": Out(stream.Signature(JOB)),
                **({"rescore": In(stream.Signature(listed_layout(config.planes)))} if config.planes else {}),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        instr, job = self.instr.payload, self.job.payload
        base, address = Signal(32, reset_less=True), Signal(32, reset_less=True)
        beats, rows = Signal(24, reset_less=True), Signal(16, reset_less=True)
        target, by_token, single = Signal(3, reset_less=True), Signal(reset_less=True), Signal(reset_less=True)
        left = Signal(8, reset_less=True)
        position, index = Signal(16, reset_less=True), Signal(20, reset_less=True)
        product = Signal(32, reset_less=True)
        m.d.comb += [
            job.target.eq(target),
            job.address.eq(address),
            job.beats.eq(beats),
            job.rows.eq(rows),
            job.last.eq(single | (left == 1)),
            self.id_request.payload.eq(position),
        ]
        by_list, list_end, first, final = Signal(), Signal(), Signal(), Signal()
        if self._planes is not None:
            # Next high plane, beats of high planes to come, low rows of the last one.
            high, high_left, low = Signal(32, reset_less=True), Signal(24, reset_less=True), Signal(32, reset_less=True)
            m.d.comb += job.last.eq(Mux(target == LoadTarget.PLANES, by_list & list_end & final, single | (left == 1)))
        if self._kv is not None:
            m.submodules.tiles = tiles = TileWalker(self._kv)
            m.d.comb += [
                tiles.base.eq(instr.address),
                *(getattr(tiles, name).eq(instr[name]) for name in ("tokens", "position", "serial")),
                tiles.start.eq(self.instr.valid & self.instr.ready & (instr.mode == LoadMode.TILES)),
            ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.instr.ready.eq(self.room)
                m.d.sync += [
                    base.eq(instr.address),
                    address.eq(instr.address),
                    beats.eq(instr.beats),
                    rows.eq(instr.rows),
                    target.eq(instr.target),
                    by_token.eq(instr.mode == LoadMode.TOKEN),
                    single.eq(instr.mode == LoadMode.DIRECT),
                    left.eq(instr.tokens),
                    position.eq(instr.position),
                    index.eq(instr.position),
                ]
                with m.If(self.instr.valid & self.room), m.Switch(instr.mode):
                    with m.Case(LoadMode.TOKEN):
                        m.next = "ASK"
                    with m.Case(LoadMode.POSITION):
                        m.next = "MULTIPLY"
                    if self._kv is not None:
                        with m.Case(LoadMode.TILES):
                            m.next = "TILES"
                    with m.Default():
                        m.next = "JOB"
                if self._planes is not None:
                    m.d.sync += [by_list.eq(0), high.eq(instr.address), high_left.eq(instr.beats), first.eq(1), final.eq(0)]
                    with m.If(self.instr.valid & self.room & (instr.target == LoadTarget.PLANES)):
                        m.next = "SEGMENT"
            with m.State("ASK"):
                m.d.comb += self.id_request.valid.eq(1)
                with m.If(self.id_request.ready):
                    m.next = "ID"
            with m.State("ID"):
                m.d.comb += self.id.ready.eq(1)
                m.d.sync += index.eq(self.id.payload)
                with m.If(self.id.valid):
                    m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                m.d.sync += product.eq(index * beats[:16])
                m.next = "ADD"
            with m.State("ADD"):
                m.d.sync += address.eq(base + product)
                m.next = "JOB"
            with m.State("JOB"):
                m.d.comb += self.job.valid.eq(1)
                with m.If(self.job.ready):
                    m.d.sync += [left.eq(left - 1), position.eq(position + 1), address.eq(address + beats)]
                    with m.If(job.last):
                        m.next = "IDLE"
                    with m.Elif(by_token):
                        m.next = "ASK"
                    if self._planes is not None:
                        with m.If(by_list & ~job.last):
                            m.next = "LIST"
                            with m.If(list_end):
                                m.d.sync += [base.eq(low), final.eq(high_left == 0)]
                                with m.If(high_left != 0):
                                    m.next = "SEGMENT"
            if self._planes is not None:
                segment_beats = self._planes.high_beats(self._planes.segment)
                with m.State("SEGMENT"):
                    m.d.sync += [by_list.eq(0), address.eq(high), beats.eq(Mux(high_left > segment_beats, segment_beats, high_left))]
                    m.next = "HIGH"
                with m.State("HIGH"):
                    m.d.comb += self.job.valid.eq(1)
                    with m.If(self.job.ready):
                        # The list that follows is that of the segment before, and of the first one if that is all.
                        only = first & (high_left == beats)
                        m.d.sync += [high.eq(high + self._planes.stride), high_left.eq(high_left - beats), first.eq(0), final.eq(only)]
                        m.d.sync += [low.eq(address + beats), base.eq(Mux(only, address + beats, low)), beats.eq(self._planes.row_beats), by_list.eq(1)]
                        m.next = "LIST"
                        with m.If(first & ~only):
                            m.next = "SEGMENT"
                with m.State("LIST"):
                    m.d.comb += self.rescore.ready.eq(1)
                    m.d.sync += [index.eq(self.rescore.payload.index), list_end.eq(self.rescore.payload.last)]
                    with m.If(self.rescore.valid):
                        m.next = "MULTIPLY"
            if self._kv is not None:
                with m.State("TILES"):
                    m.d.comb += [self.job.valid.eq(tiles.valid), tiles.take.eq(self.job.ready & tiles.valid)]
                    m.d.comb += [job[name].eq(getattr(tiles, name)) for name in ("address", "beats", "rows", "value", "last")]
                    with m.If(tiles.take & tiles.last):
                        m.next = "IDLE"
        return m


class _Rows(wiring.Component):
    """Params and rope beats to rows, one per clock, lowest first; ``popped``: a beat is through, ``ended``: a load's last row left."""

    def __init__(self, config: LoaderConfig, shape: data.StructLayout) -> None:
        self._size = config.vector_lanes * PARAM_BITS
        row = stream.Signature(self._size)
        super().__init__({"beats": In(stream.Signature(shape)), "params": Out(row), "rope": Out(row), "popped": Out(1), "ended": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat, note = self.beats.payload.beat, self.beats.payload.note
        index = Signal.like(note.rows)
        row, last = Signal(self._size, reset_less=True), Signal()
        taken, load, final = Signal(), Signal(), Signal()
        m.d.comb += [
            taken.eq((self.params.valid & self.params.ready) | (self.rope.valid & self.rope.ready)),
            load.eq(self.beats.valid & (taken | ~(self.params.valid | self.rope.valid))),
            final.eq(index == note.rows),
            self.beats.ready.eq(load & final),
            self.popped.eq(load & final),
            self.ended.eq(taken & last),
            self.params.payload.eq(row),
            self.rope.payload.eq(row),
        ]
        with m.If(taken):
            m.d.sync += [self.params.valid.eq(0), self.rope.valid.eq(0)]
        with m.If(load):
            m.d.sync += [
                self.params.valid.eq(~note.rope),
                self.rope.valid.eq(note.rope),
                row.eq(beat.word_select(index, self._size)),
                last.eq(final & note.last),
                index.eq(Mux(final, 0, index + 1)),
            ]
        return m


class _Embed(wiring.Component):
    """Table rows to beats of V codes with the row's scale beside each; ``popped``, ``ended`` as in ``_Rows``."""

    def __init__(self, config: LoaderConfig, shape: data.StructLayout) -> None:
        self._config = config
        super().__init__({"beats": In(stream.Signature(shape)), "embed": Out(stream.Signature(_unit(config))), "popped": Out(1), "ended": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        beat, note = self.beats.payload.beat, self.beats.payload.note
        units, codes = config.beat_bytes // config.vector_lanes, config.hidden // config.vector_lanes
        # The scale's units are skipped: a row's first codes leave with the scale that stands below them in the same beat.
        unit = Signal(range(units), init=config.scale_units)
        code = Signal(range(codes))
        last = Signal()
        taken, load, row_end, final = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            taken.eq(self.embed.valid & self.embed.ready),
            load.eq(self.beats.valid & (taken | ~self.embed.valid)),
            row_end.eq(code == codes - 1),
            final.eq(row_end | (unit == units - 1)),
            self.beats.ready.eq(load & final),
            self.popped.eq(load & final),
            self.ended.eq(taken & last),
        ]
        with m.If(taken):
            m.d.sync += self.embed.valid.eq(0)
        with m.If(load):
            m.d.sync += [
                self.embed.valid.eq(1),
                self.embed.payload.codes.eq(beat.word_select(unit, 8 * config.vector_lanes)),
                last.eq(row_end & note.last),
                unit.eq(Mux(row_end, config.scale_units, Mux(final, 0, unit + 1))),
                code.eq(Mux(row_end, 0, code + 1)),
            ]
            with m.If(code == 0):
                m.d.sync += self.embed.payload.scale.eq(beat[:32])
        return m


class _Finish(wiring.Component):
    """Gives ``done`` in program order: ``ended`` (per kind) may come in any. ``room``: one more instruction may start."""

    def __init__(self, config: LoaderConfig) -> None:
        self._depth = config.instructions
        super().__init__({"start": In(1), "kind": In(3), "ended": In(5), "done": Out(stream.Signature(1)), "room": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        depth = self._depth
        m.submodules.order = order = memory.Memory(shape=3, depth=depth, init=[])
        store, head = order.write_port(), order.read_port(domain="comb")
        running = Signal(range(depth + 1))
        counts = [Signal(range(depth + 1), name=f"ended_{kind}") for kind in range(5)]
        pop = Signal()
        m.d.comb += [
            self.room.eq(running != depth),
            store.en.eq(self.start),
            store.data.eq(self.kind),
            # An instruction's end is counted while it is still among the running ones, so the oldest one's kind is always valid here.
            pop.eq((~self.done.valid | self.done.ready) & Cat(c != 0 for c in counts).bit_select(head.data, 1)),
        ]
        m.d.sync += running.eq(running + self.start - pop)
        m.d.sync += [c.eq(c + self.ended[kind] - (pop & (head.data == kind))) for kind, c in enumerate(counts)]
        with m.If(self.start):
            m.d.sync += store.addr.eq(Mux(store.addr == depth - 1, 0, store.addr + 1))
        with m.If(self.done.ready):
            m.d.sync += self.done.valid.eq(0)
        with m.If(pop):
            m.d.sync += [self.done.valid.eq(1), head.addr.eq(Mux(head.addr == depth - 1, 0, head.addr + 1))]
        return m


def _unit(config: LoaderConfig) -> data.StructLayout:
    return data.StructLayout({"codes": data.ArrayLayout(signed(8), config.vector_lanes), "scale": 32})


def kv_layout(config: LoaderConfig) -> data.StructLayout:
    """A beat of a tile of keys or values, as it goes to ``KvRows``."""
    return data.StructLayout({"beat": 8 * config.beat_bytes, "first": 1, "rows": 16, "value": 1, "last": 1})


class Loader(wiring.Component):
    """Requests bursts, one beat per clock on chip, ahead of its consumers as far as their room allows; times in ``lutra.hls_models.ternary.loader``.

    Parameters
    ----------
    config : sizes.

    Members
    -------
    instr : ``In(stream)`` of the LOADER's fields, tokens, position; offered once its semaphores are satisfied.
    read, data : bursts {address, beats} out, beats back in order; ``data.ready`` is always 1.
    rescore : ``In(stream)`` of {index, last}: low rows of a table in two planes that HEAD wants.
    id_request, id : index in the context out, token id back (mode TOKEN).
    weights : ``Out(stream)``; ``ready`` is not looked at, the credit has reserved the room.
    params, rope : ``Out(stream)`` of rows of V values of 24 bits, lowest lane first.
    embed : ``Out(stream)`` of ``codes`` (V signed bytes) and their row's ``scale`` (fp32).
    head : ``Out(stream)`` of beats.
    kv : ``Out(stream)`` of {beat, first, rows, value, last}: beats of key and value tiles of ``rows`` rows, ``first`` and ``last`` of their tile; ``ready``
        is not looked at.
    k_freed, v_freed : ``In(stream)``, always ready: half of ATTEND's buffer of keys (values) is free again.
    weights_freed, params_freed, rope_freed : ``In(stream)``, always ready: a beat per row that left the ring of the consumer.
    done : ``Out(stream)``, one beat (0) per instruction once its last beat was taken, in program order.
    """

    def __init__(self, config: LoaderConfig) -> None:
        self._config = config
        beat, row, freed = stream.Signature(8 * config.beat_bytes), stream.Signature(config.vector_lanes * PARAM_BITS), stream.Signature(1)
        super().__init__(
            {
                "instr": In(stream.Signature(unit_layout(Unit.LOADER))),
                "read": Out(stream.Signature(REQUEST)),
                "data": In(beat),
                "id_request": Out(stream.Signature(16)),
                "id": In(stream.Signature(20)),
                "weights": Out(beat),
                "params": Out(row),
                "rope": Out(row),
                "embed": Out(stream.Signature(_unit(config))),
                "head": Out(beat),
                "kv": Out(stream.Signature(kv_layout(config))),
                "k_freed": In(freed),
                "v_freed": In(freed),
                "weights_freed": In(freed),
                "params_freed": In(freed),
                "rope_freed": In(freed),
                "done": Out(stream.Signature(1)),
                **({"rescore": In(stream.Signature(listed_layout(config.planes)))} if config.planes else {}),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        fields = {"kind": 3, "rope": 1, "rows": range(config.rows_per_beat), "last": 1}
        note, burst = data.StructLayout(fields), data.StructLayout(fields | {"beats": 9, "first": 1, "end": 1, "value": 1, "tile_rows": 16})
        noted = data.StructLayout({"beat": 8 * config.beat_bytes, "note": note})
        m.submodules.plan = plan = _Plan(config)
        m.submodules.issue = issue = Issue(config, burst)
        m.submodules.finish = finish = _Finish(config)
        m.submodules.rows_queue = rows_queue = Queue(shape=noted, depth=config.rows_beats)
        m.submodules.embed_queue = embed_queue = Queue(shape=noted, depth=config.embed_beats)
        m.submodules.head_queue = head_queue = Queue(shape=noted, depth=config.head_beats)
        m.submodules.rows = rows = _Rows(config, noted)
        m.submodules.embed_units = embed = _Embed(config, noted)
        for port, own in (
            (plan.instr, self.instr),
            (plan.id_request, self.id_request),
            (plan.id, self.id),
            (issue.read, self.read),
            (issue.weights_freed, self.weights_freed),
            (issue.params_freed, self.params_freed),
            (issue.rope_freed, self.rope_freed),
            (issue.k_freed, self.k_freed),
            (issue.v_freed, self.v_freed),
            (rows.params, self.params),
            (rows.rope, self.rope),
            (embed.embed, self.embed),
            (finish.done, self.done),
        ):
            wiring.connect(m, port, wiring.flipped(own))
        if config.planes is not None:
            wiring.connect(m, plan.rescore, wiring.flipped(self.rescore))
        if config.pipelined:
            m.submodules.jobs = jobs = Queue(shape=JOB, depth=JOBS_AHEAD)
            wiring.connect(m, plan.job, jobs.input)
            wiring.connect(m, jobs.output, issue.job)
        else:
            wiring.connect(m, plan.job, issue.job)
        wiring.connect(m, rows_queue.output, rows.beats)
        wiring.connect(m, embed_queue.output, embed.beats)

        # Notes of bursts wait, in request order, for their data.
        m.submodules.notes = notes = memory.Memory(shape=burst, depth=config.outstanding, init=[])
        store, oldest = notes.write_port(), notes.read_port(domain="comb")
        told, arrived, burst_end = Signal(note), Signal(9), Signal()
        m.d.comb += [
            store.en.eq(issue.fire),
            store.data.eq(issue.note),
            self.data.ready.eq(1),
            burst_end.eq(arrived == oldest.data.beats - 1),
            issue.answered.eq(self.data.valid & burst_end),
            # What belongs to a burst's last beat; those before it are full.
            told.kind.eq(oldest.data.kind),
            told.rope.eq(oldest.data.rope),
            told.rows.eq(Mux(burst_end, oldest.data.rows, config.rows_per_beat - 1)),
            told.last.eq(oldest.data.last & burst_end),
        ]
        with m.If(issue.fire):
            m.d.sync += store.addr.eq(Mux(store.addr == config.outstanding - 1, 0, store.addr + 1))
        with m.If(self.data.valid):
            m.d.sync += arrived.eq(Mux(burst_end, 0, arrived + 1))
            with m.If(burst_end):
                m.d.sync += oldest.addr.eq(Mux(oldest.addr == config.outstanding - 1, 0, oldest.addr + 1))

        kind, weights_last, kv_last = told.kind, Signal(), Signal()
        m.d.sync += [
            self.weights.valid.eq(self.data.valid & (kind == WEIGHTS)),
            self.weights.payload.eq(self.data.payload),
            weights_last.eq(told.last),
        ]
        if config.kv is not None:
            m.d.sync += [
                self.kv.valid.eq(self.data.valid & (kind == KV)),
                self.kv.payload.beat.eq(self.data.payload),
                self.kv.payload.first.eq(oldest.data.first & (arrived == 0)),
                self.kv.payload.rows.eq(oldest.data.tile_rows),
                self.kv.payload.value.eq(oldest.data.value),
                self.kv.payload.last.eq(oldest.data.end & burst_end),
                kv_last.eq(told.last),
            ]
        for value, queue in ((ROWS, rows_queue), (EMBED, embed_queue), (HEAD, head_queue)):
            m.d.comb += [
                queue.input.valid.eq(self.data.valid & (kind == value)),
                queue.input.payload.beat.eq(self.data.payload),
                queue.input.payload.note.eq(told),
            ]
        head_popped = Signal()
        m.d.comb += [
            self.head.valid.eq(head_queue.output.valid),
            self.head.payload.eq(head_queue.output.payload.beat),
            head_queue.output.ready.eq(self.head.ready),
            head_popped.eq(self.head.valid & self.head.ready),
            issue.popped.eq(Cat(0, rows.popped, embed.popped, head_popped)),
            finish.start.eq(self.instr.valid & self.instr.ready),
            finish.kind.eq(kind_of(self.instr.payload.target)),
            finish.ended.eq(
                Cat(
                    self.weights.valid & weights_last,
                    rows.ended,
                    embed.ended,
                    head_popped & head_queue.output.payload.note.last,
                    self.kv.valid & kv_last,
                )
            ),
            plan.room.eq(finish.room),
        ]
        return m
