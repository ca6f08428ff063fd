# SPDX-License-Identifier: Apache-2.0
"""The PIM target behind ``lutra estimate``: programs of tokens timed by the cycle model, as report figures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.pim import energy
from lutra.hls_models.pim.channel import BEFORE, DATA, SPACE, ChannelModel
from lutra.hls_models.pim.config import LANE_BITS, PimConfig
from lutra.hls_models.pim.program import Command, MacroKind, Program
from lutra.hls_models.pim.system import SystemModel, SystemRun
from lutra.hls_models.pim.timing import Timing, load_timing
from lutra.mapping.pim.lower import lower
from lutra.mapping.pim.occupancy import occupancy
from lutra.mapping.pim.partition import Partition, partition
from lutra.mapping.pim.shape import GptShape
from lutra.runs import config_hash
from lutra.schema import (
    AssumptionFigures,
    ConfigFigures,
    DecodeFigures,
    DramFigures,
    EnergyFigures,
    LayerFigures,
    MemoryFigures,
    ModelFigures,
    PrefillFigures,
    Report,
    ScalingPoint,
    SweepPoint,
    UnitFigures,
)
from lutra.timeline import Span

__all__ = [
    "TokenTime",
    "bound_cycles",
    "bound_rows",
    "estimate",
    "later_mode_changes",
    "point",
    "report_of",
    "row_cycles",
    "scaling",
    "spans_of",
    "token_time",
    "waits",
]

OnStep = Callable[[int, int], None]
C = Command
ARRAY = (C.MAC, C.RD, C.WR, C.WRA)
"""Commands that access columns of the array."""


@dataclass(frozen=True)
class TokenTime:
    """One token on the cycle model."""

    partition: Partition
    timing: Timing
    context: int
    program: Program
    run: SystemRun

    @property
    def cycles(self) -> int:
        """From start to done."""
        return self.run.cycles

    @property
    def seconds(self) -> float:
        """At the command clock."""
        return self.cycles * self.timing.clock_ns * 1e-9

    @property
    def fraction_of_row_bound(self) -> float:
        """Bound over cycles."""
        return bound_cycles(self.partition, self.timing, self.context) / self.cycles

    @property
    def row_hit_rate(self) -> float:
        """Column accesses that opened no row, over all."""
        counts = self.counts
        accesses = sum(counts[kind] for kind in ARRAY)
        return 1 - (counts[C.ACT] + counts[C.ACTA]) / accesses

    @property
    def counts(self) -> list[int]:
        """Commands of all channels by kind."""
        return [sum(numbers) for numbers in zip(*(channel.counts for channel in self.run.channels), strict=True)]

    @property
    def joules(self) -> dict[str, float]:
        """Energy by part."""
        parts = {"companion chip": energy.companion_energy(self.seconds)}
        for channel in self.run.channels:
            for name, value in energy.channel_energy(self.partition.config, channel.counts, self.seconds).items():
                parts[name] = parts.get(name, 0.0) + value
        return parts


def row_cycles(config: PimConfig, timing: Timing) -> int:
    """Cycles of an all-bank row of MACs with its switch and no read-out: the unit of the row bound (226 with gddr6-aim)."""
    n = timing.cycles
    return n("tRCDMAC") + (config.columns - 1) * n("tCCDL") + n("tRTP") + n("tRP")


def bound_rows(shape: GptShape, config: PimConfig, context: int) -> float:
    """All-bank rows that a token must open: whole rows per matrix, keys and values as the share of rows that they fill."""
    spread = config.channels * config.banks * config.row_bytes
    value = LANE_BITS // 8
    q, d = shape.query_columns, shape.hidden
    layer = [(3 * q, d), (d, q), (shape.ffn, d), (d, shape.ffn)]
    rows = [-(-outputs * inputs * value // spread) for outputs, inputs in layer]
    return shape.layers * (sum(rows) + 2 * context * q * value / spread) + -(-shape.vocabulary * d * value // spread)


def bound_cycles(made: Partition, timing: Timing, context: int) -> float:
    """The row bound of a token."""
    return bound_rows(made.shape, made.config, context) * row_cycles(made.config, timing)


def token_time(made: Partition, timing: Timing, context: int, *, overlap: bool = True) -> TokenTime:
    """Time of the token that attends ``context`` tokens, itself included; without ``overlap`` channels and companion chip work in turn."""
    program = lower(made, context - 1, overlap=overlap)
    return TokenTime(made, timing, context, program, SystemModel(made.config, timing, program).run())


def estimate(
    shape: GptShape,
    config: PimConfig,
    *,
    context: int,
    prompt: int | None = None,
    sweep: Sequence[int] = (),
    channels: Sequence[int] = (),
    ignore_capacity: bool = False,
    update: OnStep = lambda done, total: None,
) -> tuple[Report, TokenTime]:
    """A token at ``context``, as figures and in detail.

    ``prompt``: its time to the first token, so many sequential tokens; ``sweep``, ``channels``: further contexts, other numbers of channels.

    Raises
    ------
    ModelError : the model or the context does not fit, and by how much
    """
    timing = load_timing(config.timing)
    longest = max([context, prompt or 1, *sweep])
    made = partition(shape, config, tokens=longest, ignore_capacity=ignore_capacity)
    others = [_with_channels(shape, config, n, longest, ignore_capacity) for n in channels]  # what does not fit is refused before anything is timed
    total = 2 + (prompt or 0) + len(sweep) + len(channels) + config.activate_in_register_mode
    steps = iter(range(1, total + 1))

    def timed(place: Partition, at: int, overlap: bool = True) -> TokenTime:
        found = token_time(place, timing, at, overlap=overlap)
        update(next(steps), total)
        return found

    token = timed(made, context)
    report = report_of(token)
    more: dict[str, object] = {}
    assumptions = []
    if config.activate_in_register_mode:
        without = config.model_copy(update={"activate_in_register_mode": False})
        other = timed(partition(shape, without, tokens=longest, ignore_capacity=ignore_capacity), context).cycles
        text = "rows are activated, and banks precharged, while the channel is in register mode: the published table does not forbid it"
        assumptions.append(AssumptionFigures(name="activate_in_register_mode", text=text, cycles_per_token_without=other))
    text = (
        "the global buffer is written in array mode (an open simulator does it in register mode); without, at most: the change back to array mode stands "
        "behind every buffer, and one more before those that load no accumulators"
    )
    assumptions.append(AssumptionFigures(name="buffer_write_in_array_mode", text=text, cycles_per_token_without=token.cycles + later_mode_changes(token)))
    text = "the companion chip works beside the channels as far as dependencies allow (PIM-GPT takes turns)"
    assumptions.append(AssumptionFigures(name="overlap", text=text, cycles_per_token_without=timed(made, context, overlap=False).cycles))
    more["assumptions"] = assumptions
    if prompt:
        cycles = sum(timed(made, at).cycles for at in range(1, prompt + 1))
        more["prefill"] = PrefillFigures(tokens=prompt, cycles=cycles, seconds=cycles * timing.clock_ns * 1e-9)
    if sweep:
        points = {at: point(timed(made, at)) for at in sweep} | {context: point(token)}
        more["sweep"] = [points[at] for at in sorted(points)]
    if channels:
        more["scaling"] = scaling([timed(place, context) for place in others])
    return report.model_copy(update=more), token


def later_mode_changes(token: TokenTime) -> int:
    """Most cycles that buffers written in register mode could cost: mode changes that nothing hides, on the channel that has most of them."""
    changes = [sum(1 if macro.load else 2 for macro in macros if macro.kind == MacroKind.BUFFER) for macros in token.program.macros]
    return token.timing.cycles("tMODE") * max(changes)


def _with_channels(shape: GptShape, config: PimConfig, channels: int, tokens: int, ignore_capacity: bool) -> Partition:
    if not 1 <= channels <= 256:
        raise ConfigError(f"channels must be 1 to 256, not {channels}")
    return partition(shape, config.model_copy(update={"channels": channels}), tokens=tokens, ignore_capacity=ignore_capacity)


def point(token: TokenTime) -> SweepPoint:
    """A token of a sweep."""
    return SweepPoint(
        context=token.context,
        cycles_per_token=token.cycles,
        tokens_per_second=1 / token.seconds,
        joules_per_token=sum(token.joules.values()),
        row_hit_rate=token.row_hit_rate,
        fraction_of_row_bound=token.fraction_of_row_bound,
    )


def scaling(tokens: Sequence[TokenTime]) -> list[ScalingPoint]:
    """The same token on several numbers of channels, in their order."""
    tokens = sorted(tokens, key=lambda token: token.partition.config.channels)
    first = tokens[0]
    return [
        ScalingPoint(
            channels=token.partition.config.channels,
            cycles_per_token=token.cycles,
            tokens_per_second=1 / token.seconds,
            efficiency=first.cycles * first.partition.config.channels / (token.cycles * token.partition.config.channels),
            fits=not token.partition.overflow_rows,
        )
        for token in tokens
    ]


def report_of(token: TokenTime) -> Report:
    """The figures of one token."""
    made, timing, config, shape = token.partition, token.timing, token.partition.config, token.partition.shape
    banks, column_bytes = config.channels * config.banks, config.lanes * LANE_BITS // 8
    counts = token.counts
    moved = (counts[C.MAC] * config.banks + counts[C.RD] + counts[C.WR]) * column_bytes + counts[C.WRA] * config.banks * LANE_BITS // 8
    bandwidth = banks * column_bytes / (timing.cycles("tCCDL") * timing.clock_ns * 1e-9)
    joules = token.joules
    return Report(
        target="pim",
        model=ModelFigures(name=shape.name, parameters=shape.parameters),
        config=ConfigFigures(name=config.name, hash=config_hash(config)),
        clock_hz=1e9 / timing.clock_ns,
        decode=DecodeFigures(tokens=1, context=token.context, cycles_per_token=token.cycles, tokens_per_second=1 / token.seconds),
        memory=MemoryFigures(
            bytes_per_token=moved,
            bandwidth_bytes_per_second=bandwidth,
            ceiling_tokens_per_second=bandwidth / moved,
            fraction_of_ceiling=moved / bandwidth / token.seconds,
            fraction_of_row_bound=token.fraction_of_row_bound,
            image_bytes=made.rows * banks * config.row_bytes,
        ),
        units=_units(token),
        layers=_layers(token),
        dram=_dram(token),
        energy=EnergyFigures(joules_per_token=sum(joules.values()), parts=joules, source=energy.SOURCE),
        provenance={
            "decode": "model",
            "memory": "model",
            "units": "model",
            "layers": "model",
            "dram": "model",
            "energy": "published: PIM-GPT's constants on modelled commands",
        },
    )


def _units(token: TokenTime) -> list[UnitFigures]:
    """The channels, which are alike but for the phase of their refreshes, as one; the companion chip by its items."""
    channels = token.run.channels
    total: dict[str, int] = {}
    for channel in channels:
        for name, cycles in waits(channel, token.cycles).items():
            total[name] = total.get(name, 0) + cycles
    mean = {name: round(cycles / len(channels)) for name, cycles in total.items()}
    busy = mean.pop("MAC", 0)
    name = f"channels (mean of {len(channels)})"
    unit = UnitFigures(name=name, busy_cycles=busy, stall_cycles=mean, utilisation=busy / token.cycles)
    companion = token.run.companion
    items = 2 * sum(len(clocks) for _, clocks in companion.issues)
    return [unit, UnitFigures(name="companion chip", busy_cycles=items, utilisation=items / token.cycles)]


def waits(channel: ChannelModel, cycles: int) -> dict[str, int]:
    """A channel's cycles by what the next command waited for; sums to ``cycles``."""
    spent = np.array(channel.spent, np.int64).reshape(-1, BEFORE)
    found: dict[str, int] = {}
    for kind, reason in zip(*np.nonzero(spent), strict=True):
        name = _reason(int(kind), int(reason))
        found[name] = found.get(name, 0) + int(spent[kind, reason])
    rest = cycles - channel.now
    found["companion chip"] = found.get("companion chip", 0) + rest
    return found


def _reason(kind: int, reason: int) -> str:
    """Category of the cycles before a command ``kind`` that waited for ``reason``."""
    if reason in (DATA, SPACE):
        return "companion chip"
    if C.REF in (kind, reason):
        return "refresh"
    if kind == C.MODE or reason == C.MODE:
        return "mode change"
    if kind in (C.RDM, C.BIAS):
        return "read-out"
    if kind == C.GBW or (kind == C.MAC and reason == C.GBW):
        return "buffer write"
    if kind == C.RD or reason == C.RD:
        return "pins: reads"
    if kind in (C.WR, C.WRA) or reason in (C.WR, C.WRA):
        return "key and value writes"
    if kind == C.MAC and reason == C.MAC:
        return "MAC"
    return "row switch"


def _layers(token: TokenTime) -> list[LayerFigures]:
    """From done to done by the first word of the steps' labels."""
    ends: dict[str, int] = {}
    label = ""
    for index, done in enumerate(token.run.dones):
        label = token.program.labels.get(index, label)
        name = label.split()[0]
        ends[name] = max(ends.get(name, 0), int(done))
    names = sorted(ends, key=lambda name: ends[name])
    ends[names[-1]] = token.cycles
    before = 0
    layers = []
    for name in names:
        layers.append(LayerFigures(name=name, cycles=ends[name] - before))
        before = ends[name]
    return layers


def spans_of(program: Program, run: SystemRun) -> Iterator[Span]:
    """The companion chip's instructions, a track for each kind, named by the step they belong to."""
    label = ""
    for index, instruction in enumerate(program.instructions):
        label = program.labels.get(index, label)
        yield Span(type(instruction).__name__.upper(), label, int(run.starts[index]), int(run.dones[index]))


def _dram(token: TokenTime) -> DramFigures:
    made, config = token.partition, token.partition.config
    counts = token.counts
    pins: dict[str, float] = {}
    time: dict[str, float] = {}
    for channel in token.run.channels:
        for name, bits in energy.pin_bits(config, channel.counts).items():
            pins[name] = pins.get(name, 0) + bits / 8 / config.channels
        for name, cycles in waits(channel, token.cycles).items():
            time[name] = time.get(name, 0) + cycles * token.timing.clock_ns / config.channels
    return DramFigures(
        commands={kind.name: counts[kind] for kind in Command if counts[kind]},
        row_hit_rate=token.row_hit_rate,
        row_switches=(counts[C.ACT] + counts[C.ACTA]) / config.channels,
        idle_banks=occupancy(made, token.context).total.idle_banks,
        capacity_bytes=config.capacity_bytes - made.overflow_rows * config.channels * config.banks * config.row_bytes,
        used_bytes=made.rows * config.channels * config.banks * config.row_bytes,
        fits=not made.overflow_rows,
        pin_bytes=pins,
        nanoseconds=time,
    )
