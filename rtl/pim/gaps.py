# SPDX-License-Identifier: Apache-2.0
"""Timing rules of a channel in hardware: may this command be issued next?"""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lutra.hls_models.pim.program import Command
from lutra.hls_models.pim.rules import BANKS_PER_GROUP, CONTROLLER, Rule, Scope
from lutra.hls_models.pim.rules import gaps as merged
from lutra.rtl.pim.macros import COMMAND_BITS

__all__ = ["DELTA", "NO_RULE", "Gaps"]

DELTA = 2
"""Bits of the signed change of a gap."""
NO_RULE = 255
"""Index that no rule has."""

Key = tuple[tuple[Command, ...], Scope, int]
"""What a counter follows: the last, or ``window``-th last, of these commands in a scope."""


class Gaps(wiring.Component):
    """Ages of the commands issued, compared with the gaps that the rules want.

    A counter follows the last (for a window of n: the n-th last) of a rule's commands in the channel, bank group or bank: it holds the clocks from that command
    to one that would be issued next, and stops where no rule wants more. Legal is what finds all its counters high enough.

    Parameters
    ----------
    banks
        Of the channel.
    rules
        As ``hls_models.pim.rules.rules`` gives them.
    adjustable
        For negative controls in simulation: a rule's gap can be changed at run time. No part of a design that is used.

    Members
    -------
    kind, bank : ``In``
        The command that might be issued in the next cycle.
    fire : ``In(1)``
        It is.
    legal : ``Out(1)``
        Every rule allows it; combinational.
    rule : ``In(8)``, delta : ``In(signed)``
        With ``adjustable`` only: index of a rule, and what is added to its gap.
    """

    def __init__(self, *, banks: int, rules: tuple[Rule, ...], adjustable: bool = False) -> None:
        self._banks, self._rules, self._adjustable = banks, rules, adjustable
        members = {"kind": In(COMMAND_BITS), "bank": In(max(1, ceil_log2(banks))), "fire": In(1), "legal": Out(1)}
        if adjustable:
            members |= {"rule": In(8), "delta": In(DELTA)}
        super().__init__(members)

    def _wanted(self) -> dict[Key, list[tuple[tuple[Command, ...], int, int]]]:
        """Per counter: (commands that wait for it, cycles, index of the rule)."""
        found: dict[Key, list[tuple[tuple[Command, ...], int, int]]] = {}
        if self._adjustable:
            plain = [
                ((before,), rule.scope, 1, rule.after, rule.cycles, index)
                for index, rule in enumerate(self._rules)
                for before in rule.before
                if rule.window == 1
            ]
        else:  # a gap of one clock is there anyway
            plain = [((before,), scope, 1, (after,), cycles, NO_RULE) for (before, after, scope), cycles in merged(self._rules).items() if cycles > 1]
        windows = [(rule.before, rule.scope, rule.window, rule.after, rule.cycles, index) for index, rule in enumerate(self._rules) if rule.window > 1]
        for before, scope, window, after, cycles, index in plain + windows:
            found.setdefault((before, scope, window), []).append((after, cycles, index))
        return found

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        group = self.bank[2:] if len(self.bank) > 2 else Const(0, 1)
        places = {"channel": (1, Const(0)), "bank": (self._banks, self.bank), "group": (-(-self._banks // BANKS_PER_GROUP), group)}
        allowed: dict[Command, list[Value]] = {command: [] for command in CONTROLLER}
        for (before, scope, window), waiting in self._wanted().items():
            limit = max(cycles for _, cycles, _ in waiting) + self._adjustable
            name = "_".join([*(command.name.lower() for command in before), scope])
            issued = Signal(name=f"issued_{name}")
            m.d.comb += issued.eq(self.fire & Cat(self.kind == command for command in before).any())
            count, where = places[scope]
            ages = []
            for place in range(count):
                fresh: Value = Const(1)  # issued in this cycle, a command stands on the output in the next: one clock before what is then decided
                for back in range(1, window + 1):
                    age = Signal(range(limit + 1), init=limit, name=f"age_{name}_{place}_{back}")
                    later = Mux(age == limit, limit, age + 1)
                    m.d.sync += age.eq(Mux(issued & (where == place), fresh, later))
                    fresh = later
                ages.append(age)
            for after, cycles, index in waiting:
                gap: Value | int = cycles
                if self._adjustable:
                    gap = Mux(self.rule == index, (Const(cycles) + self.delta.as_signed()).as_unsigned(), cycles)
                met = Signal(name=f"met_{name}_{cycles}_{index}")
                m.d.comb += met.eq(Cat(age >= gap for age in ages).bit_select(where, 1))
                for command in after:
                    allowed[command].append(met)
        m.d.comb += self.legal.eq(Cat(Cat(terms).all() for terms in allowed.values()).bit_select(self.kind, 1))
        return m
