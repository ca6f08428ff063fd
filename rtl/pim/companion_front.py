# SPDX-License-Identifier: Apache-2.0
"""Front of the companion chip's pipeline: takes instructions, counts items, and issues each when its read-out, credits and predecessors allow."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import FLOAT_LATENCY
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.instructions import FETCH, INSTRUCTION_DEPTH, MIDDLE, OPERATION_LATENCY, ROUND, UNIT_LATENCY, Add, Kind, Scale
from lutra.hls_models.pim.program import Statistic
from lutra.rtl.pim.companion_items import instruction_layout, item_layout, path_layout
from lutra.rtl.pim.companion_sram import address_bits
from lutra.rtl.streams import Queue

__all__ = ["Front"]

POSITION = 24
"""Bits of an element's or item's position, as of ``valid``."""


def _done(config: PimConfig, path: data.View) -> Value:
    """``Work.done``."""
    add, mul = FLOAT_LATENCY["add"], FLOAT_LATENCY["mul"]
    levels = config.lanes.bit_length() - 1
    pipeline = Const(FETCH + MIDDLE + ROUND)
    pipeline += Mux(path.add != Add.NONE, add, 0) + Mux(path.scale != Scale.NONE, mul, 0) + Mux(path.gain, mul, 0) + Mux(path.offset, add, 0)
    pipeline += Mux(path.residual, add, 0) + _choose(path.unit, {int(unit): clocks for unit, clocks in UNIT_LATENCY.items()})
    sums = add * levels + add + 1 + 2 * add
    gathered = _choose(
        path.statistic,
        {int(Statistic.SUM): sums, int(Statistic.SUMSQ): FLOAT_LATENCY["mul"] + sums, int(Statistic.MAX): levels, int(Statistic.ARGMAX): levels},
    )
    scalar = _choose(path.unit, {int(operation): clocks for operation, clocks in OPERATION_LATENCY.items()})
    return Mux(path.kind == Kind.SCALAR, scalar, pipeline + gathered)


def _choose(selector: Value, constants: dict[int, int]) -> Value:
    """Constant of a selector's value, 0 where there is none."""
    result: Value = Const(0, max(constants.values()).bit_length())
    for key, constant in constants.items():
        result = Mux(selector == key, constant, result)
    return result


class Front(wiring.Component):
    """Instruction queue and issue, an item per clock.

    An instruction is loaded in the clock in which the last item before it is issued, or later, from the clock after the queue accepted it; its first item
    is issued a clock later at the earliest, and ``done`` + 1 clocks after the last item before it unless it follows on the same path without draining.

    Members
    -------
    instructions : stream of ``instruction_layout``
    offered : ``In(C)``, the channels' read-outs are valid
    room : ``In(C)``, the channels' data queues have a place for this clock's item
    take, source : a read-out of channel ``source`` is taken in this clock
    issue : an item enters the pipeline in this clock (not of SCALAR); ``item``, and ``address_a``, its word at a
    send : ``Out(C)``, channels that the item takes a place of
    path : of what is in the pipeline
    start : a SCALAR begins; ``scalar_a``, ``scalar_b``, ``scalar_d``: its scalars
    finish : this clock is the last one of what is in the pipeline
    """

    def __init__(self, config: PimConfig) -> None:
        self._config = config
        super().__init__(
            {
                "instructions": In(stream.Signature(instruction_layout(config))),
                "offered": In(config.channels),
                "room": In(config.channels),
                "take": Out(1),
                "source": Out(range(config.channels)),
                "issue": Out(1),
                "item": Out(item_layout(config)),
                "address_a": Out(address_bits(config)),
                "send": Out(config.channels),
                "path": Out(path_layout()),
                "start": Out(1),
                "scalar_a": Out(5),
                "scalar_b": Out(5),
                "scalar_d": Out(5),
                "finish": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config = self._config
        m.submodules.queue = queue = Queue(shape=instruction_layout(config), depth=INSTRUCTION_DEPTH)
        wiring.connect(m, wiring.flipped(self.instructions), queue.input)
        now = Signal(instruction_layout(config))
        given = queue.output.payload
        busy, follows, started = Signal(), Signal(), Signal()
        done = Signal(range(512))
        pending = Signal.like(done)  # clocks until all that was issued is written
        full, rest = Signal(POSITION), Signal(range(config.lanes))  # items of valid values only, valid values of the item after them

        # Counters: g and c of the item, c % split, c // split, g * split, (c // split) * step.
        group, channel, place, segment = Signal(20), Signal(9), Signal(9), Signal(5)
        group_base, segment_base = Signal(POSITION), Signal(POSITION)
        ready, go, load = Signal(), Signal(), Signal()
        kind = now.path.kind
        last_channel, last_place = channel + 1 == now.channels, place + 1 == now.split
        last = last_channel & (group + 1 == now.groups)
        m.d.comb += [
            ready.eq(busy & (started | follows | (pending == 0))),
            go.eq(ready & Mux(kind == Kind.RECEIVE, self.offered.bit_select(self.source, 1), ~(now.mask & ~self.room).any())),
            load.eq(queue.output.valid & (~busy | (go & last))),
            queue.output.ready.eq(~busy | (go & last)),
            self.take.eq(go & (kind == Kind.RECEIVE)),
            self.issue.eq(go & (kind != Kind.SCALAR)),
            self.start.eq(go & (kind == Kind.SCALAR)),
            self.send.eq(Mux(go, now.mask, 0)),
            self.scalar_a.eq(now.s),
            self.scalar_b.eq(now.a),
            self.scalar_d.eq(now.stat),
            self.finish.eq(pending == 1),
        ]
        with m.If(go):
            m.d.sync += [started.eq(1), pending.eq(done)]
        with m.Elif(pending != 0):
            m.d.sync += pending.eq(pending - 1)

        # An empty pipeline takes any path; what is in it keeps its own.
        held = Signal(path_layout())
        m.d.comb += self.path.eq(Mux(pending == 0, now.path.as_value(), held.as_value()))
        m.d.sync += held.eq(self.path)

        with m.If(go):
            m.d.sync += [channel.eq(channel + 1), place.eq(place + 1), self.source.eq(self.source + 1)]
            with m.If(last_place):
                m.d.sync += [place.eq(0), segment.eq(segment + 1), segment_base.eq(segment_base + now.step)]
            with m.If(last_channel):
                m.d.sync += [group.eq(group + 1), group_base.eq(group_base + now.split), self.source.eq(now.channel)]
                m.d.sync += [channel.eq(0), place.eq(0), segment.eq(0), segment_base.eq(0)]
            with m.If(last):
                m.d.sync += busy.eq(0)
        with m.If(load):
            beats, words = config.lanes.bit_length() - 1, config.banks.bit_length() - 1
            m.d.sync += [
                now.eq(given),
                busy.eq(1),
                started.eq(0),
                follows.eq(~given.drain & (given.path.kind != Kind.SCALAR) & (given.path.as_value() == now.path.as_value())),
                done.eq(_done(config, given.path)),
                full.eq(Mux(given.path.wide, given.valid >> beats, given.valid >> words)),
                rest.eq(Mux(given.path.wide, given.valid[:beats], given.valid[:words] if words else 0)),
                self.source.eq(given.channel),
                Cat(group, channel, place, segment, group_base, segment_base).eq(0),
            ]
        self._addresses(m, now, (group, channel, place, segment), group_base, segment_base, (full, rest))
        m.d.comb += self.item.last.eq(last)
        return m

    def _addresses(
        self, m: Module, now: data.View, counters: tuple[Signal, ...], group_base: Signal, segment_base: Signal, valid: tuple[Signal, Signal]
    ) -> None:
        """What goes with the item of the present counters."""
        config, item = self._config, self.item
        group, channel, place, segment = counters
        full, rest = valid
        position, offset, distance = Signal(POSITION), Signal(POSITION), Signal(address_bits(config))
        shift = config.words_per_beat.bit_length() - 1
        m.d.comb += [
            position.eq(group_base + place),
            offset.eq(position + segment_base),
            distance.eq(Mux(now.path.wide, offset << shift, offset)),
            self.address_a.eq(now.a + distance),
            item.b.eq(now.b + distance),
            item.c.eq(now.c + distance),
            item.dst.eq(now.dst + distance),
            item.store.eq(now.store),
            item.s.eq(now.s + segment),
            item.stat.eq(now.stat + Mux(now.path.statistic == Statistic.MAX, segment, 0)),
            item.first.eq((group == 0) & Mux(now.path.statistic == Statistic.MAX, place == 0, channel == 0)),
            item.mask.eq(now.mask),
        ]
        with m.If(position < full):
            m.d.comb += item.count.eq(Mux(now.path.wide, config.lanes, config.banks))
        with m.Elif(position == full):
            m.d.comb += item.count.eq(rest)
