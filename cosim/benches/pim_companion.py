# SPDX-License-Identifier: Apache-2.0
"""Bench of rtl/pim/companion.py: designs and random programs; what their ports must show is in pim_companion_case.py."""

from dataclasses import replace
from typing import Any

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.cosim.harness import Bench
from lutra.hls_models.pim.companion import check_program
from lutra.hls_models.pim.config import LANE_BITS, CompanionConfig, PimConfig
from lutra.hls_models.pim.instructions import SCALARS
from lutra.hls_models.pim.program import Function, Instruction, Operation, Receive, Scalar, ScalarOperation, Statistic, Vector
from lutra.rtl.pim.companion import Companion
from lutra.rtl.pim.companion_items import instruction_layout

__all__ = ["CompanionPorts", "bench", "configurations", "program"]

DENSE = 0.6


class CompanionPorts(wiring.Component):
    """A companion chip whose ports are single streams, and the index register's changes as another one."""

    def __init__(self, config: PimConfig) -> None:
        self._config = config
        beat = stream.Signature(LANE_BITS * config.lanes)
        members: dict[str, Any] = {"instructions": In(stream.Signature(instruction_layout(config)))}
        for c in range(config.channels):
            members |= {f"readout_{c}": In(beat), f"data_{c}": Out(beat), f"freed_{c}": In(stream.Signature(1))}
        super().__init__(members | {"index": Out(stream.Signature(32, always_ready=True))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.companion = companion = Companion(self._config)
        wiring.connect(m, wiring.flipped(self.instructions), companion.instructions)
        for c in range(self._config.channels):
            freed = getattr(self, f"freed_{c}")
            wiring.connect(m, wiring.flipped(getattr(self, f"readout_{c}")), companion.readouts[c])
            wiring.connect(m, companion.data[c], wiring.flipped(getattr(self, f"data_{c}")))
            m.d.comb += [companion.freed[c].eq(freed.valid), freed.ready.eq(1)]
        before = Signal(32)
        m.d.sync += before.eq(companion.index)
        m.d.comb += [self.index.valid.eq(before != companion.index), self.index.payload.eq(companion.index)]
        return m


def configurations(sizes: tuple[tuple[int, int, int], ...]) -> list[PimConfig]:
    """Channels, banks and lanes of each, with small SRAMs and data queues."""
    return [
        PimConfig(
            name=f"{channels}x{banks}",
            channels=channels,
            banks=banks,
            lanes=lanes,
            columns=8,
            companion=CompanionConfig(sram_bytes=128 * lanes, data_depth=9 + 3 * i, functions=("minimax", "taylor")[i % 2]),
        )
        for i, (channels, banks, lanes) in enumerate(sizes)
    ]


def bench(configs: list[PimConfig]) -> Bench:
    """All configurations, ``c0`` …, in one top."""
    both = Bench("companion chip")
    for i, config in enumerate(configs):
        both.add(f"c{i}", CompanionPorts(config))
    return both


def _address(rng: np.random.Generator, config: PimConfig, wide: bool, span: int) -> int:
    """A random aligned address, more often than not one of a few, so that instructions meet."""
    unit = config.words_per_beat if wide else 1
    places = max(1, (config.sram_words - span) // unit + 1)
    return unit * int(rng.choice([0, int(rng.integers(places)), int(rng.integers(min(places, 4)))]))


def _maybe(rng: np.random.Generator, value: int, chance: float = 0.5) -> int | None:
    return value if rng.random() < chance else None


def _receive(rng: np.random.Generator, config: PimConfig) -> Receive:
    channel = int(rng.integers(config.channels))
    channels = int(rng.integers(1, config.channels - channel + 1))
    wide, groups = bool(rng.random() < 0.2), int(rng.choice([1, 2, int(rng.integers(1, 12))]))
    split = int(rng.integers(0, channels + 1))
    inner = split or channels
    segments = 1 if wide else -(-channels // inner)
    step = groups * inner + int(rng.integers(0, 4))
    span = (groups * channels if wide else segments * step) * (config.words_per_beat if wide else 1)
    statistic = Statistic(int(rng.integers(5)))
    if statistic == Statistic.ARGMAX and segments > 1:
        statistic = Statistic.MAX
    lanes, base = config.lanes if wide else config.banks, [_address(rng, config, wide, span) for _ in range(4)]
    total = groups * (channels if wide else inner) * lanes
    return Receive(
        channel,
        channels,
        groups,
        valid=int(rng.choice([total, int(rng.integers(total + 1)), total + 3])),
        dst=_maybe(rng, base[0], 0.9),
        split=split,
        head_step=0 if wide else step,
        wide=wide,
        partial=_maybe(rng, base[1], 0.4),
        scale=_maybe(rng, int(rng.integers(SCALARS - segments)), 0.4),
        bias=_maybe(rng, base[2], 0.4),
        function=Function(int(rng.choice(4, p=[0.6, 0.15, 0.1, 0.15]))),
        residual=_maybe(rng, base[3], 0.4),
        statistic=statistic,
        stat=int(rng.integers(SCALARS - segments)),
        keep=statistic in (Statistic.MAX, Statistic.ARGMAX) and bool(rng.random() < 0.5),
        base=int(rng.integers(1 << 17)) if statistic == Statistic.ARGMAX else 0,
        drain=bool(rng.random() < 0.5),
    )


def _vector(rng: np.random.Generator, config: PimConfig) -> Vector:
    narrow, beats = bool(rng.random() < 0.3), int(rng.choice([1, 2, int(rng.integers(1, 16))]))
    span = beats * config.words_per_beat
    total = beats * config.lanes
    a, b, c, dst = (_address(rng, config, not narrow, span) for _ in range(4))
    operation = Operation(int(rng.integers(5)))
    return Vector(
        operation,
        a,
        beats,
        valid=int(rng.choice([total, int(rng.integers(total + 1)), total + 3])),
        dst=_maybe(rng, dst, 0.7),
        b=b if operation == Operation.ADD else _maybe(rng, b),
        c=_maybe(rng, c),
        s=int(rng.integers(SCALARS)),
        k=int(np.float32(rng.normal()).view(np.uint32)),
        mask=int(rng.integers(1 << config.channels)),
        narrow=narrow,
        statistic=Statistic(int(rng.integers(5))),
        stat=int(rng.integers(SCALARS)),
        drain=bool(rng.random() < 0.5),
    )


def _scalar(rng: np.random.Generator) -> Scalar:
    d, a, b = (int(x) for x in rng.integers(SCALARS, size=3))
    return Scalar(ScalarOperation(int(rng.integers(7))), d, a, b, int(np.float32(rng.normal()).view(np.uint32)))


def _alike(rng: np.random.Generator, config: PimConfig, one: Instruction) -> Instruction:
    """Another instruction of the same path, which may follow without draining."""
    if isinstance(one, Scalar):
        return _scalar(rng)
    if isinstance(one, Receive):
        other = _receive(rng, config)
        span = config.sram_words // 3
        addresses: dict[str, Any] = {
            name: None if getattr(one, name) is None else _address(rng, config, one.wide, span) for name in ("partial", "bias", "residual")
        }
        same: dict[str, Any] = {name: getattr(one, name) for name in ("wide", "function", "statistic", "keep", "base")}
        scale = None if one.scale is None else int(rng.integers(SCALARS - config.channels))
        return replace(other, **addresses, **same, scale=scale, drain=False)
    vector = _vector(rng, config)
    same = {name: getattr(one, name) for name in ("operation", "narrow", "k", "statistic", "b", "c")}
    return replace(vector, **same, drain=False)


def _accepted(instructions: list[Instruction], config: PimConfig) -> bool:
    try:
        check_program(instructions, config)
    except ValueError:
        return False
    return True


def program(rng: np.random.Generator, config: PimConfig, count: int) -> list[Instruction]:
    """Random instructions, now and then the same one at other addresses, which may follow without draining; at the end the SRAM is sent to channel 0."""
    rows = config.sram_words // config.words_per_beat
    found: list[Instruction] = []
    while len(found) < count:
        one: Instruction
        choice = rng.random()
        if choice < 0.4:
            one = _receive(rng, config)
        elif choice < 0.8:
            one = _vector(rng, config)
        else:
            one = _scalar(rng)
        more = [one]
        if rng.random() < DENSE:
            more += [_alike(rng, config, one) for _ in range(3)]
        for each in more:
            if _accepted([*found[-8:], each], config):
                found.append(each)
    return [*found, Vector(Operation.COPY, 0, rows, rows * config.lanes, mask=1)]
