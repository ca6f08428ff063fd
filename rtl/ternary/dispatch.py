# SPDX-License-Identifier: Apache-2.0
"""Instruction queues and semaphores between the sequencer and the units."""

from amaranth import C, Cat, Module, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.isa import COMMON_FIELDS, INSTRUCTION_BITS, PASS_FIELDS, UNIT_FIELDS, Semaphore, Unit
from lutra.rtl.streams import Queue

__all__ = ["SEMAPHORE_BITS", "Dispatch", "dispatched_layout", "instruction_layout", "unit_layout"]

SEMAPHORE_BITS = 4
_SEMAPHORES = len(Semaphore)


def unit_layout(unit: Unit) -> data.StructLayout:
    """What the unit's ``instr`` stream carries: its own fields, then those of the pass."""
    return data.StructLayout({field.name: unsigned(field.bits) for field in UNIT_FIELDS[unit] + PASS_FIELDS})


def instruction_layout(unit: Unit) -> data.StructLayout:
    """Common fields, then the unit's own: the instruction word, lowest bit first."""
    return data.StructLayout({field.name: unsigned(field.bits) for field in COMMON_FIELDS + UNIT_FIELDS[unit]})


def dispatched_layout() -> data.StructLayout:
    """An instruction word on its way to a unit, with the fields of the pass."""
    return data.StructLayout({"word": INSTRUCTION_BITS} | {field.name: field.bits for field in PASS_FIELDS})


class Dispatch(wiring.Component):
    """Queues of one unit each, and the semaphores they share.

    An instruction leaves its queue when the unit takes it, which it may once every semaphore of its wait mask is above zero; the mask is
    decremented in that cycle. When the unit's ``done`` comes, the signal mask of the instruction it runs is incremented. An instruction that is
    pushed in cycle t can start in t+1; a semaphore signalled in t is seen in t+1.

    Members
    -------
    clear : ``In(1)``
        Zeroes all semaphores but TOKEN, which becomes 1 (the first pass of a run embeds the prompt).
    grant_token : ``In(1)``
        Increments TOKEN (the next pass of a prompt embeds ids that are already known).
    push : ``In(stream)`` of word, tokens, position
    units : list of ``Out(stream)``
        One per unit, raw instruction; ``done`` : list of ``In(stream)``, always ready.
    stored : ``In(1)``
        Increments STORED: ATTEND's keys and values are in a shared memory, long before it is done.
    idle : ``Out(1)``
        Nothing queued, nothing running. ``running`` : ``Out``, one bit per unit, for the performance counters.
    """

    def __init__(self, *, depth: int, outstanding: int = 255) -> None:
        self._depth, self._outstanding = depth, outstanding
        self.units = [unit for unit in Unit if unit is not Unit.END]
        members: dict[str, object] = {
            "clear": In(1),
            "grant_token": In(1),
            "stored": In(1),
            "push": In(stream.Signature(dispatched_layout())),
            "idle": Out(1),
            "running": Out(len(self.units)),
        }
        for unit in self.units:
            members[unit.name.lower()] = Out(stream.Signature(unit_layout(unit)))
            members[f"{unit.name.lower()}_done"] = In(stream.Signature(1))
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        semaphores = [Signal(SEMAPHORE_BITS, name=f"semaphore_{i}") for i, _ in enumerate(Semaphore)]
        taken = {unit: Signal(8, name=f"taken_{unit.name.lower()}") for unit in self.units}
        signalled = {unit: Signal(8, name=f"signalled_{unit.name.lower()}") for unit in self.units}
        opcode = self.push.payload.word[: COMMON_FIELDS[0].bits]
        ready, busy = Signal(), []
        for unit in self.units:
            name = unit.name.lower()
            queue = m.submodules[f"queue_{name}"] = Queue(shape=dispatched_layout(), depth=self._depth)
            selected = opcode == unit
            m.d.comb += [queue.input.valid.eq(self.push.valid & selected), queue.input.payload.eq(self.push.payload)]
            with m.If(selected):
                m.d.comb += ready.eq(queue.input.ready)
            out, done = getattr(self, name), getattr(self, f"{name}_done")
            word = data.View(instruction_layout(unit), queue.output.payload.word[: instruction_layout(unit).size])
            granted = Signal(name=f"granted_{name}")
            m.d.comb += [
                granted.eq(Cat(~word.wait[i] | (s != 0) for i, s in enumerate(semaphores)).all()),
                out.valid.eq(queue.output.valid & granted),
                queue.output.ready.eq(out.ready & granted),
                done.ready.eq(1),
            ]
            m.d.comb += [out.payload[field.name].eq(word[field.name]) for field in UNIT_FIELDS[unit]]
            m.d.comb += [out.payload[field.name].eq(queue.output.payload[field.name]) for field in PASS_FIELDS]
            started, ended = out.valid & out.ready, done.valid
            # Instructions that signal run alone in their unit, so that one register per unit holds the mask.
            running = Signal(range(self._outstanding + 1), name=f"running_{name}")
            mask = Signal(8, name=f"mask_{name}")
            m.d.sync += running.eq(running + started - ended)
            with m.If(started):
                m.d.comb += taken[unit].eq(word.wait)
                m.d.sync += mask.eq(word.signal)
            with m.If(ended):
                m.d.comb += signalled[unit].eq(mask)
            busy += [running != 0, queue.output.valid]
        m.d.comb += [self.push.ready.eq(ready), self.idle.eq(~Cat(busy).any()), self.running.eq(Cat(busy[::2]))]
        for i, semaphore in enumerate(semaphores):
            up = sum((signalled[unit][i] for unit in self.units), C(0, 1))
            down = sum((taken[unit][i] for unit in self.units), C(0, 1))
            up = up + {Semaphore.TOKEN: self.grant_token, Semaphore.STORED: self.stored}.get(Semaphore(1 << i), C(0, 1))
            with m.If(self.clear):
                m.d.sync += semaphore.eq(int(Semaphore(1 << i) is Semaphore.TOKEN))
            with m.Else():
                m.d.sync += semaphore.eq(semaphore + up - down)
        return m
