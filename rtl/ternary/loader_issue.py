# SPDX-License-Identifier: Apache-2.0
"""LOADER's requests: bursts of consecutive beats, fired when the room of all their data is there."""

from amaranth import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.isa import LoadTarget
from lutra.hls_models.ternary.loader import LoaderConfig

__all__ = ["EMBED", "HEAD", "JOB", "KV", "REQUEST", "ROWS", "WEIGHTS", "Issue", "kind_of"]

WEIGHTS, ROWS, EMBED, HEAD, KV = range(5)
"""Kinds of data: where a beat goes, and whose room its request takes."""
KINDS = {target: kind for target, kind in zip(LoadTarget, (WEIGHTS, ROWS, ROWS, EMBED, HEAD, KV, HEAD), strict=True)}

JOB = data.StructLayout({"target": 3, "address": 32, "beats": 24, "rows": 16, "value": 1, "last": 1})
"""Consecutive beats to fetch, ``rows`` rows in them; ``value``: a tile of values, not keys; ``last``: of its instruction."""

REQUEST = data.StructLayout({"address": 32, "beats": 9})
"""A burst: its first beat's address, its beats."""


def _credit(m: Module, name: str, *, initial: int, gain: Value, take: Value) -> Signal:
    """A counter that starts at ``initial`` and never leaves 0 … initial."""
    credit = Signal(range(initial + 1), init=initial, name=name)
    m.d.sync += credit.eq(credit + gain - take)
    return credit


def kind_of(target: Value) -> Value:
    """Kind of a target; the table is as long as the field can count."""
    return Cat(C(KINDS[LoadTarget(value)] if value < len(KINDS) else 0, 3) for value in range(8)).word_select(target, 3)


class Issue(wiring.Component):
    """Turns jobs into bursts, one per clock (every other clock, where ``pipelined``) while there is room for all of their beats, and notes for each what its
    data will be.

    Members
    -------
    fire : ``Out(1)``, with ``note``: a request enters the ``read`` register.
    answered : ``In(1)``: a burst's last beat arrived. popped : ``In(4)``: per kind, a beat left its queue.
    """

    def __init__(self, config: LoaderConfig, note: data.StructLayout) -> None:
        self._config = config
        freed = stream.Signature(1)
        super().__init__(
            {
                "job": In(stream.Signature(JOB)),
                "read": Out(stream.Signature(REQUEST)),
                "weights_freed": In(freed),
                "params_freed": In(freed),
                "rope_freed": In(freed),
                "k_freed": In(freed),
                "v_freed": In(freed),
                "popped": In(4),
                "answered": In(1),
                "fire": Out(1),
                "note": Out(note),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, p = self._config, self._config.rows_per_beat
        active, job, fresh = Signal(), Signal(JOB, reset_less=True), Signal()
        ready, fire = Signal(), self.fire
        fired = {target: Signal(name=f"fired_{target.name.lower()}") for target in LoadTarget}
        m.d.comb += [fired[target].eq(fire & (job.target == target)) for target in LoadTarget]
        beats, final = self._burst(m, job, fire, ready)
        count = Signal(range(p * config.largest_burst(LoadTarget.PARAMS) + 1))  # rows of params or rope
        m.d.comb += count.eq(Mux(final, job.rows, beats * p))

        freed = {target: getattr(self, f"{target.name.lower()}_freed") for target in (LoadTarget.WEIGHTS, LoadTarget.PARAMS, LoadTarget.ROPE)}
        m.d.comb += [port.ready.eq(1) for port in (*freed.values(), self.k_freed, self.v_freed)]
        weights = _credit(
            m,
            "weights_credit",
            initial=config.ring_rows * config.row_beats,
            gain=Mux(self.weights_freed.valid, config.row_beats, 0),
            take=Mux(fired[LoadTarget.WEIGHTS], beats, 0),
        )
        params, rope = (
            _credit(m, f"{t.name.lower()}_credit", initial=rows, gain=freed[t].valid, take=Mux(fired[t], count, 0))
            for t, rows in ((LoadTarget.PARAMS, config.params_rows), (LoadTarget.ROPE, config.rope_rows))
        )
        depths = {ROWS: config.rows_beats, EMBED: config.embed_beats, HEAD: config.head_beats}
        rooms = {
            kind: _credit(
                m,
                f"room_{kind}",
                initial=depth,
                gain=self.popped[kind],
                take=Mux(Cat(fired[target] for target, k in KINDS.items() if k == kind).any(), beats, 0),
            )
            for kind, depth in depths.items()
        }
        flight = _credit(m, "flight", initial=config.outstanding, gain=self.answered, take=fire)
        if config.kv is not None:
            # A tile's first burst takes half a tile buffer, the others come with it.
            begun = fired[LoadTarget.KV] & fresh
            k_free, v_free = (
                _credit(m, f"{name}_free", initial=2, gain=port.valid, take=begun & (job.value == value))
                for name, port, value in (("k", self.k_freed, 0), ("v", self.v_freed, 1))
            )

        room = Signal()
        with m.Switch(job.target):
            with m.Case(LoadTarget.WEIGHTS):
                m.d.comb += room.eq(weights >= beats)
            with m.Case(LoadTarget.PARAMS):
                m.d.comb += room.eq((params >= count) & (rooms[ROWS] >= beats))
            with m.Case(LoadTarget.ROPE):
                m.d.comb += room.eq((rope >= count) & (rooms[ROWS] >= beats))
            with m.Case(LoadTarget.EMBED):
                m.d.comb += room.eq(rooms[EMBED] >= beats)
            if config.kv is not None:
                with m.Case(LoadTarget.KV):
                    m.d.comb += room.eq(~fresh | Mux(job.value, v_free != 0, k_free != 0))
            with m.Default():
                m.d.comb += room.eq(rooms[HEAD] >= beats)
        if config.pipelined:
            # What has room keeps it until it is fired; the comparisons are a clock ahead.
            seen = Signal()
            m.d.sync += seen.eq(active & room & ~fire)
            granted = seen
        else:
            granted = active & room
        m.d.comb += [
            fire.eq(granted & (flight != 0) & (~self.read.valid | self.read.ready)),
            ready.eq(~active | (fire & final)),
            self.job.ready.eq(ready),
            self.note.kind.eq(kind_of(job.target)),
            self.note.rope.eq(job.target == LoadTarget.ROPE),
            self.note.rows.eq(Mux(final, job.rows - (beats - 1) * p, p) - 1),
            self.note.last.eq(final & job.last),
            self.note.end.eq(final),
            self.note.beats.eq(beats),
            self.note.first.eq(fresh),
            self.note.value.eq(job.value),
            self.note.tile_rows.eq(job.rows),
        ]
        with m.If(self.read.ready):
            m.d.sync += self.read.valid.eq(0)
        with m.If(fire):
            m.d.sync += [
                self.read.valid.eq(1),
                self.read.payload.address.eq(job.address),
                self.read.payload.beats.eq(beats),
                job.address.eq(job.address + beats),
                job.beats.eq(job.beats - beats),
                fresh.eq(0),
            ]
            with m.If(job.target != LoadTarget.KV):
                m.d.sync += job.rows.eq(job.rows - beats * p)
        with m.If(ready):
            m.d.sync += [active.eq(self.job.valid), job.eq(self.job.payload), fresh.eq(1)]
        return m

    def _burst(self, m: Module, job: data.View, fire: Value, ready: Value) -> tuple[Value, Value]:
        """Beats of the next burst of the present job, and whether it is the job's last: in registers, worked out a clock ahead."""
        config, offered = self._config, self.job.payload
        if config.burst_beats == 1:
            return C(1, 9), job.beats == 1
        beats, final = Signal(9, reset_less=True), Signal(reset_less=True)
        first, other, after = Signal(9), Signal(9), Signal(24)  # beats up to the next cut, from a job's first beat and from a cut
        with m.Switch(offered.target):
            for target in LoadTarget:
                size = config.largest_burst(target)
                with m.Case(target):
                    m.d.comb += first.eq(size - (offered.address & (size - 1)))
        with m.Switch(job.target):
            for target in LoadTarget:
                with m.Case(target):
                    m.d.comb += other.eq(config.largest_burst(target))
        m.d.comb += after.eq(job.beats - beats)
        for when, left, total in ((fire, other, after), (ready, first, offered.beats)):
            with m.If(when):
                m.d.sync += [beats.eq(Mux(total <= left, total, left)), final.eq(total <= left)]
        return beats, final
