# SPDX-License-Identifier: Apache-2.0
"""A core beside a processor: control over AXI4-Lite, memory over AXI4, one interrupt."""

from typing import Any

from amaranth import Cat, ClockDomain, ClockSignal, Const, Elaboratable, Module, Mux, ResetSignal, Signal
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.control import BASE_BITS, WINDOW_BITS, Entry, Interrupt, SystemRegister, control_map
from lutra.rtl.axi.drain import ReadDrain, WriteDrain
from lutra.rtl.axi.lite import AxiLiteSlave
from lutra.rtl.axi.ports import ADDRESS_BITS, AxiLite, AxiRead, AxiWrite
from lutra.rtl.verilog import restarted

__all__ = ["ProcessorSystem", "ProcessorTop"]

WORD_BITS = WINDOW_BITS - 2


class ProcessorSystem(wiring.Component):
    """A ``SharedSystem`` with its control registers (``hls_models.ternary.control``).

    The core is in reset until RUN is written, and when RUN is cleared from the clock on in which no burst of it is on its way: a memory that answers late is
    never left with an answer that nobody takes. RUN written meanwhile takes effect behind that reset.

    Members
    -------
    control : ``In(AxiLite)``. read : P times ``Out(AxiRead)``. write : ``Out(AxiWrite)``.
    interrupt : ``Out(1)``, high while an enabled bit of INTERRUPT_STATUS is 1.
    """

    def __init__(self, system: Any) -> None:
        self._system, self.ports = system, system.ports
        super().__init__(
            {
                "control": In(AxiLite(address_bits=WINDOW_BITS)),
                "read": Out(AxiRead(address_bits=ADDRESS_BITS)).array(self.ports),
                "write": Out(AxiWrite(address_bits=ADDRESS_BITS)),
                "interrupt": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        system = self._system
        m.submodules.control_slave = slave = AxiLiteSlave(address_bits=WINDOW_BITS)
        wiring.connect(m, wiring.flipped(self.control), slave.axi)

        run, stop, halted = Signal(), Signal(init=1), Signal(init=1)
        m.submodules.system = restarted(system, halted)
        quiet = self._memory(m, stop)
        with m.If(~run):
            m.d.sync += stop.eq(1)
        with m.Elif(halted):
            m.d.sync += stop.eq(0)
        m.d.sync += halted.eq(stop & quiet & ~(run & halted))
        running = Signal()
        m.d.comb += running.eq(~stop & ~halted)

        happened = self._happenings(m, running)
        enabled, status = Signal(len(Interrupt)), Signal(len(Interrupt))
        bases = [Signal(BASE_BITS, name=f"base_{port}") for port in range(self.ports)]
        m.d.comb += [own.eq(base) for own, base in zip(system.base, bases, strict=True)]
        m.d.sync += self.interrupt.eq((enabled & status).any())

        register = SystemRegister
        values = {
            register.RUN: run,
            register.STATE: Cat(~halted, system.error & ~halted),
            register.INTERRUPT_ENABLE: enabled,
            register.INTERRUPT_STATUS: status,
            register.PORTS: Const(self.ports, 4),
        } | {register.PORT_BASE + port: base for port, base in enumerate(bases)}
        self._bus(m, slave, values, running, halted)

        cleared = Signal(len(Interrupt))
        m.d.sync += status.eq(status & ~cleared | happened)
        with m.If(slave.write), m.Switch(slave.address):
            with m.Case(register.RUN):
                m.d.sync += run.eq(slave.write_data[0])
            with m.Case(register.INTERRUPT_ENABLE):
                m.d.sync += enabled.eq(slave.write_data)
            with m.Case(register.INTERRUPT_STATUS):
                # What the strobes leave out reads as it is, which must not clear it.
                m.d.comb += cleared.eq(slave.write_data & slave.named)
            for port, base in enumerate(bases):
                with m.Case(register.PORT_BASE + port):
                    m.d.sync += base.eq(slave.write_data)
        return m

    def _memory(self, m: Module, stop: Signal) -> Any:
        """Ports of the core behind drains; returns whether all are quiet."""
        drains: list[ReadDrain | WriteDrain] = []
        for port, (master, own) in enumerate(zip(self._system.read, self.read, strict=True)):
            m.submodules[f"read_{port}"] = drain = ReadDrain()
            wiring.connect(m, master, drain.master)
            wiring.connect(m, drain.port, wiring.flipped(own))
            drains.append(drain)
        m.submodules.write = writes = WriteDrain()
        wiring.connect(m, self._system.write, writes.master)
        wiring.connect(m, writes.port, wiring.flipped(self.write))
        drains.append(writes)
        m.d.comb += [drain.stop.eq(stop) for drain in drains]
        return Cat(drain.quiet for drain in drains).all()

    def _happenings(self, m: Module, running: Signal) -> Any:
        """Bits of ``Interrupt`` that become 1 in this clock."""
        system, was_busy, was_error = self._system, Signal(), Signal()
        m.d.sync += [was_busy.eq(system.busy & running), was_error.eq(system.error & running)]
        bits = {
            Interrupt.DONE: was_busy & ~system.busy & running,
            Interrupt.TOKEN: system.token.valid & running,
            Interrupt.ERROR: system.error & ~was_error & running,
        }
        return Cat(bits[bit] for bit in Interrupt)

    def _bus(self, m: Module, slave: AxiLiteSlave, values: dict[int, Any], running: Signal, halted: Signal) -> None:
        """Reads of both halves, and which accesses there are."""
        bus, word = self._system.bus, slave.address
        core_bits, entries = len(bus.address), {entry.offset // 4: entry for entry in control_map(self.ports)}
        in_core = word < (1 << core_bits)
        m.d.comb += [
            bus.address.eq(word),
            bus.write_data.eq(slave.write_data),
            bus.write.eq(slave.write & in_core & running),
        ]
        own, is_core = Signal(32), Signal()
        m.d.sync += [own.eq(0), is_core.eq(in_core & running)]
        with m.Switch(word):
            for address, value in values.items():
                with m.Case(address):
                    m.d.sync += own.eq(value)
        m.d.comb += slave.read_data.eq(Mux(is_core, bus.read_data, own))

        def now(entry: Entry) -> Any:
            """When a writable register can be written."""
            if entry.offset // 4 < 1 << core_bits:
                return running
            return halted if entry.offset // 4 >= SystemRegister.PORT_BASE else Const(1)

        m.d.sync += [slave.mapped.eq(0), slave.readable.eq(0), slave.writable.eq(0)]
        with m.Switch(word):
            for address, entry in entries.items():
                with m.Case(address):
                    m.d.sync += [slave.mapped.eq(1), slave.readable.eq(int(entry.readable))]
                    m.d.sync += slave.writable.eq(now(entry) if entry.writable else 0)


class ProcessorTop(Elaboratable):
    """A ``ProcessorSystem`` with flat pins under the standard's names, clock and reset included.

    Pins: ``aclk``, ``aresetn``, ``interrupt``, ``s_axi_control_*``, and ``m_axi_memory0_*`` …: each a read port, the first the write port too.

    Parameters
    ----------
    system : ``SharedSystem``, or what has its members.

    Attributes
    ----------
    ports : name: (signal, direction), for ``emit``.
    """

    def __init__(self, system: Any) -> None:
        self._system = ProcessorSystem(system)
        self._clock, self._reset_n = Signal(name="aclk"), Signal(name="aresetn")
        self._pins: list[tuple[Signal, Any, bool]] = []
        self.ports: dict[str, tuple[Signal, Any]] = {"aclk": (self._clock, PortDirection.Input), "aresetn": (self._reset_n, PortDirection.Input)}
        self._flatten("s_axi_control", self._system.control)
        for port, read in enumerate(self._system.read):
            self._flatten(memory_name(port), read)
            if port == 0:
                self._flatten(memory_name(port), self._system.write)
        self._add("interrupt", self._system.interrupt, driven=True)

    def _flatten(self, prefix: str, interface: Any) -> None:
        for path, member, value in interface.signature.flatten(interface):
            self._add(f"{prefix}_{path[0]}", value, driven=member.flow is Out)

    def _add(self, name: str, value: Any, *, driven: bool) -> None:
        pin = Signal(len(value), name=name)
        self._pins.append((pin, value, driven))
        self.ports[name] = (pin, PortDirection.Output if driven else PortDirection.Input)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = ClockDomain("sync")
        m.d.comb += [ClockSignal().eq(self._clock), ResetSignal().eq(~self._reset_n)]
        m.submodules.system = self._system
        m.d.comb += [pin.eq(value) if driven else value.eq(pin) for pin, value, driven in self._pins]
        return m


def memory_name(port: int) -> str:
    """Interface of a read port, and, for the first one, of the write port."""
    return f"m_axi_memory{port}"
