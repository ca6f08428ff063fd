# SPDX-License-Identifier: Apache-2.0
"""Small stream components that several blocks share."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["Gearbox", "Queue"]


class Queue(wiring.Component):
    """First-in first-out queue with a registered output.

    Holds exactly ``depth`` items; ``input.ready`` in a cycle iff fewer are held, whatever the output does. Latency 1: an item accepted
    at t is offered from max(t + 1, handshake of the one before + 1). Initiation interval 1 (2 at depth 1). No combinational path between the sides.

    Parameters
    ----------
    shape : ShapeLike
        Payload.
    depth : int
        Items held, at least 1; all but the output register lie in LUT-RAM.

    Members
    -------
    input, output : stream of ``shape``
    """

    def __init__(self, *, shape, depth: int):
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        self.shape, self.depth = shape, depth
        super().__init__({"input": In(stream.Signature(shape)), "output": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        rows = self.depth - 1
        push, pull = Signal(), Signal()
        m.d.comb += [push.eq(self.input.valid & self.input.ready), pull.eq(~self.output.valid | self.output.ready)]
        if rows == 0:
            m.d.comb += self.input.ready.eq(~self.output.valid)
            with m.If(pull):
                m.d.sync += [self.output.valid.eq(push), self.output.payload.eq(self.input.payload)]
            return m
        m.submodules.memory = memory = Memory(shape=self.shape, depth=rows, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        level = Signal(range(rows + 1))
        store, fetch = Signal(), Signal()

        def step(pointer):
            return Mux(pointer == rows - 1, 0, pointer + 1)

        m.d.comb += [
            self.input.ready.eq(level != rows),
            fetch.eq(pull & (level != 0)),
            store.eq(push & ~(pull & (level == 0))),  # an empty memory is passed by
            write.data.eq(self.input.payload),
            write.en.eq(store),
        ]
        m.d.sync += level.eq(level + store - fetch)
        with m.If(store):
            m.d.sync += write.addr.eq(step(write.addr))
        with m.If(fetch):
            m.d.sync += read.addr.eq(step(read.addr))
        with m.If(pull):
            m.d.sync += [
                self.output.valid.eq(push | (level != 0)),
                self.output.payload.eq(Mux(level != 0, read.data, self.input.payload)),
            ]
        return m


class Gearbox(wiring.Component):
    """Re-packs beats of up to ``inputs`` items into beats of ``outputs`` items, in order.

    ``input.last`` flushes: the beats up to it leave, the final one zero-padded, and the next item starts a new beat. Latency 1: a beat is
    offered from the cycle after the input that completes it. An input is taken in a cycle iff fewer than ``outputs`` items are left behind what
    leaves in the same cycle (after ``last``: iff nothing is left); so ``input.ready`` depends on ``output.ready`` in the same cycle, and one beat
    leaves in every cycle for as long as inputs >= outputs and the source has beats.

    Cycle model: with cum[i] the items up to input i, every ``last`` padding cum to a multiple of outputs, input i is taken no earlier than
    output cum[i-1] // outputs - 1 leaves, and output b is offered one cycle after the first input with cum[i] >= (b + 1) * outputs.

    Parameters
    ----------
    shape : ShapeLike
        One item.
    inputs, outputs : int
        Items of an input beat and of an output beat.

    Members
    -------
    input : stream of {items: ``inputs`` x ``shape``, count: valid items, 1...inputs, the low ones, last}
    output : stream of {items: ``outputs`` x ``shape``, last: it ends a flushed sequence}
    """

    def __init__(self, *, shape, inputs: int, outputs: int):
        if inputs < 1 or outputs < 1:
            raise ValueError(f"inputs and outputs must be at least 1, not {inputs} and {outputs}")
        self.shape, self.inputs, self.outputs = shape, inputs, outputs
        super().__init__(
            {
                "input": In(stream.Signature(data.StructLayout({"items": data.ArrayLayout(shape, inputs), "count": range(inputs + 1), "last": 1}))),
                "output": Out(stream.Signature(data.StructLayout({"items": data.ArrayLayout(shape, outputs), "last": 1}))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        inputs, outputs = self.inputs, self.outputs
        capacity = inputs + outputs - 1
        width = data.ArrayLayout(self.shape, 1).size
        held = Signal(capacity * width)
        level = Signal(range(capacity + 1))
        flushing, pop, push = Signal(), Signal(), Signal()
        enough = level >= outputs
        source, sink = self.input, self.output
        m.d.comb += [
            sink.valid.eq(enough | flushing),
            sink.payload.items.as_value().eq(held[: outputs * width]),
            sink.payload.last.eq(flushing & (level <= outputs)),
            pop.eq(sink.valid & sink.ready),
            push.eq(source.valid & source.ready),
        ]
        with m.If(flushing):
            m.d.comb += source.ready.eq(pop & sink.payload.last)
        with m.Else():
            m.d.comb += source.ready.eq(Mux(pop, level < 2 * outputs, ~enough))
        kept = Signal(range(capacity + 1))  # what stays after this cycle's output
        m.d.comb += kept.eq(Mux(pop, Mux(level <= outputs, 0, level - outputs), level))
        with m.If(push | pop):
            m.d.sync += level.eq(kept + Mux(push, source.payload.count, 0))
        items = source.payload.items.as_value()
        if inputs == 1:
            for i in range(outputs):  # registers with enable and reset: no logic in front of them
                item, placed = held[i * width : (i + 1) * width], push & (kept == i)
                with m.If(pop & ~placed):
                    m.d.sync += item.eq(0)
                with m.Elif(placed):
                    m.d.sync += item.eq(items)
        else:
            fresh = Signal(inputs * width)  # items past the count are cleared: what stays above the level is zero, the padding of a flush
            m.d.comb += fresh.eq(Cat(Mux(source.payload.count > i, items[i * width : (i + 1) * width], Const(0, width)) for i in range(inputs)))
            placed = Signal(capacity * width)
            with m.Switch(kept):
                for position in range(outputs):
                    with m.Case(position):
                        m.d.comb += placed.eq(fresh << (position * width))
            with m.If(push | pop):
                m.d.sync += held.eq(Mux(pop, held >> (outputs * width), held) | Mux(push, placed, 0))
        with m.If(push):
            m.d.sync += flushing.eq(source.payload.last)
        with m.Elif(pop & sink.payload.last):
            m.d.sync += flushing.eq(0)
        return m
