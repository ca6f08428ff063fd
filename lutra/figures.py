# SPDX-License-Identifier: Apache-2.0
"""From the times of instructions to a report's figures: per phase, unit, layer and instruction, bytes moved and roofline."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.isa import Instruction, LoadTarget, Unit, executed
from lutra.hls_models.ternary.program import Program
from lutra.runs import config_hash
from lutra.schema import (
    AttentionFigures,
    ConfigFigures,
    DecodeFigures,
    InstructionFigures,
    LayerFigures,
    MemoryFigures,
    ModelFigures,
    PrefillFigures,
    Report,
    RooflineFigures,
    RooflinePoint,
    UnitFigures,
)
from lutra.timeline import Span
from lutra.traffic import Traffic

__all__ = ["PassSize", "Timing", "pace_warning", "report_of", "spans"]


@dataclass(frozen=True)
class PassSize:
    """One pass of the program: ``tokens`` tokens from ``position``; ``last``: it ends with a choice. ``decode``: a pass after the prompt. ``rescored``: rows of
    a head in two planes that were scored again. ``serial``: it verifies drafts, and ``yields`` tokens of the text."""

    position: int
    tokens: int
    last: bool
    decode: bool
    rescored: int = 0
    serial: bool = False
    yields: int = 1

    def runs(self, instruction: Instruction) -> bool:
        """Whether the pass executes the instruction."""
        return instruction.unit is not Unit.END and instruction.when in executed(self.tokens, self.last)


@dataclass(frozen=True)
class Timing:
    """Times of a run in clock cycles, from the cycle model or the RTL's counters.

    Parameters
    ----------
    passes
        In order; prefill passes first.
    start, done
        int64 (passes, instructions of the program); -1 where a pass does not execute the instruction.
    end
        int64 (passes,): when a pass is done; the next one counts from there, the first from 0.
    busy
        By unit name: cycles in which the unit works. A unit's stalls are not among them.
    stalls
        By unit name and reason: cycles in which the unit has an instruction and waits.
    worked
        ``busy`` by pass; empty where it is not known.
    """

    passes: tuple[PassSize, ...]
    start: NDArray[np.int64]
    done: NDArray[np.int64]
    end: NDArray[np.int64]
    busy: dict[str, int]
    stalls: dict[str, dict[str, int]] = field(default_factory=dict)
    worked: tuple[dict[str, int], ...] = ()

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Cycles of each pass."""
        return np.diff(self.end, prepend=0)


def spans(program: Program, timing: Timing) -> Iterator[Span]:
    """Every executed instruction for a timeline."""
    for number, _ in enumerate(timing.passes):
        for index, (instruction, label) in enumerate(zip(program.instructions, program.labels, strict=True)):
            if timing.start[number, index] >= 0:
                yield Span(instruction.unit.name, label, int(timing.start[number, index]), int(timing.done[number, index]))


def report_of(spec: CoreSpec, program: Program, timing: Timing) -> Report:
    """Everything that times and program say; what only a simulation or a comparison knows is left out (``Report.model_copy`` adds it)."""
    clock, lengths, traffic = spec.config.clock_hz, timing.lengths, Traffic(spec, program)
    prompt = [size for size in timing.passes if not size.decode]
    decode = [(size, int(cycles)) for size, cycles in zip(timing.passes, lengths, strict=True) if size.decode]
    prefill_cycles = int(timing.end[len(prompt) - 1]) if prompt else 0
    seconds = prefill_cycles / clock
    limits = {decode: _limit(spec, timing, decode=decode) for decode in (False, True)}
    prefill = PrefillFigures(tokens=sum(size.tokens for size in prompt), cycles=prefill_cycles, seconds=seconds, limit=limits[False]) if prompt else None
    decoded = _decode(decode, clock, limits[True], planes=spec.planes is not None)
    plain = not any(size.serial for size, _ in decode)
    attention = _attention(spec, program, timing) if decoded and plain and spec.config.memory else None
    total = int(timing.end[-1])
    some = {"prefill": prefill, "decode": decoded, "attention": attention}
    provenance = dict.fromkeys([*(name for name, figures in some.items() if figures), "memory", "units", "layers", "instructions", "roofline"], "model")
    return Report(
        target="ternary",
        model=ModelFigures(name=spec.shape.name, parameters=spec.shape.parameters),
        config=ConfigFigures(name=spec.config.name, hash=config_hash(spec.config)),
        clock_hz=clock,
        prefill=prefill,
        decode=decoded,
        memory=_memory(traffic, timing, decoded),
        attention=attention,
        units=[_unit(name, timing, total) for name in timing.busy],
        layers=_layers(traffic, timing),
        instructions=_instructions(program, timing),
        roofline=_roofline(traffic, timing),
        provenance=provenance,
    )


def _decode(passes: list[tuple[PassSize, int]], clock: float, limit: str | None, *, planes: bool) -> DecodeFigures | None:
    if not passes:
        return None
    cycles, last = [length for _, length in passes], passes[-1][0]
    tokens = sum(size.yields for size, _ in passes)
    mean = sum(cycles) / tokens
    found = DecodeFigures(
        tokens=tokens,
        context=last.position + last.yields,
        cycles_per_token=mean,
        tokens_per_second=clock / mean,
        limit=limit,
        rescored_rows=sum(size.rescored for size, _ in passes) / len(passes) if planes else None,
    )
    if any(size.serial for size, _ in passes):  # the tokens of a pass come together
        return found.model_copy(update={"passes": len(passes), "tokens_per_pass": tokens / len(passes)})
    return found.model_copy(update={"per_token": cycles})


LIMITS = {"LOADER": "memory", "LINEAR": "lookup array", "VECTOR": "vector lanes", "ATTEND": "attention", "HEAD": "head"}


def _limit(spec: CoreSpec, timing: Timing, *, decode: bool) -> str | None:
    """The unit that works most of the clocks it could: of LOADER these are the memory's slots."""
    chosen = [worked for size, worked in zip(timing.passes, timing.worked, strict=False) if size.decode == decode]
    slots = spec.config.memory.share if spec.config.memory else 1.0
    clocks = {name: sum(worked.get(name, 0) for worked in chosen) / (slots if name == "LOADER" else 1.0) for name in LIMITS}
    return LIMITS[max(clocks, key=lambda name: clocks[name])] if chosen else None


def _unit(name: str, timing: Timing, total: int) -> UnitFigures:
    busy = timing.busy[name]
    return UnitFigures(name=name, busy_cycles=busy, stall_cycles=timing.stalls.get(name, {}), utilisation=busy / total)


def _layer_of(instruction: Instruction, label: str, before: str) -> str:
    """The layer that an instruction serves, from its label ("load layers.3.qkv.weights" → "layers.3"); shared tables go to who reads them."""
    if instruction.unit is Unit.LOADER:
        target = LoadTarget(instruction.fields["target"])
        shared = {LoadTarget.EMBED: "embed", LoadTarget.HEAD: "head", LoadTarget.PLANES: "head", LoadTarget.ROPE: before, LoadTarget.KV: before}
        if target in shared:
            return shared[target]
    parts = label.removeprefix("load ").split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else parts[0]


def _layers(traffic: Traffic, timing: Timing) -> list[LayerFigures]:
    """From done to done, in the order in which the layers finish: the cycles sum to the run's."""
    program = traffic.program
    members: dict[str, list[int]] = {}
    layer = ""
    for index, (instruction, label) in enumerate(zip(program.instructions, program.labels, strict=True)):
        if instruction.unit is not Unit.END:
            layer = _layer_of(instruction, label, layer)
            members.setdefault(layer, []).append(index)
    cycles, moved = dict.fromkeys(members, 0), dict.fromkeys(members, 0)
    mark = 0
    for number, size in enumerate(timing.passes):
        finished = {name: int(timing.done[number, indices].max()) for name, indices in members.items()}
        for name, done in sorted(finished.items(), key=lambda item: item[1]):
            cycles[name] += max(done - mark, 0)
            mark = max(done, mark)
            moved[name] += sum(traffic.read(size, program.instructions[i]) for i in members[name])
        cycles[max(finished, key=lambda name: finished[name])] += int(timing.end[number]) - mark
        mark = int(timing.end[number])
    return [LayerFigures(name=name, cycles=cycles[name], bytes=moved[name]) for name in members]


def _instructions(program: Program, timing: Timing) -> list[InstructionFigures]:
    """By label and unit: the variants of an instruction for last and other passes are one entry."""
    ran = timing.start >= 0
    lasted = np.where(ran, timing.done - timing.start, 0).sum(0)
    merged: dict[tuple[str, str], tuple[int, int]] = {}
    for instruction, label, count, cycles in zip(program.instructions, program.labels, ran.sum(0), lasted, strict=True):
        before = merged.get((label, instruction.unit.name), (0, 0))
        merged[label, instruction.unit.name] = (before[0] + int(count), before[1] + int(cycles))
    return [InstructionFigures(name=label, unit=unit, executions=count, cycles=cycles) for (label, unit), (count, cycles) in merged.items() if count]


def _memory(traffic: Traffic, timing: Timing, decode: DecodeFigures | None) -> MemoryFigures:
    """The memory port's traffic. On chip, key/value rows have ports of their own and are not in it; the ceiling is that of the bytes moved. A shared memory's
    ceiling is that of the least bytes a token needs (``Traffic.ideal``)."""
    spec, program = traffic.spec, traffic.program
    config = spec.config
    bandwidth = config.memory.bandwidth(config.clock_hz) if config.memory else config.beat_bytes * config.clock_hz
    stored = sum(i.fields["beats"] for i in program.instructions if i.unit is Unit.LOADER and i.fields["target"] == LoadTarget.WEIGHTS)
    sizes = [size for size in timing.passes if size.decode]
    kinds = [traffic.by_kind(size) for size in sizes]
    tokens = [replace(size, position=size.position + place, yields=1) for size in sizes for place in range(size.yields)]
    by_kind = {kind: sum(one.get(kind, 0) for one in kinds) / len(tokens) for kind in dict.fromkeys(kind for one in kinds for kind in one)}
    per_token = sum(by_kind.values()) if sizes else None
    ideal = sum(traffic.ideal(one) for one in tokens) / len(tokens) if tokens and config.memory else None
    least = ideal or per_token
    ceiling = bandwidth / least if least else None
    return MemoryFigures(
        bytes_per_token=per_token,
        bytes_by_kind=by_kind or None,
        least_bytes_per_token=ideal,
        bandwidth_bytes_per_second=bandwidth,
        ceiling_tokens_per_second=ceiling,
        fraction_of_ceiling=decode.tokens_per_second / ceiling if decode and ceiling else None,
        image_bytes=program.beats * program.beat_bytes,
        bits_per_weight=8 * stored * program.beat_bytes / spec.shape.ternary_weights,
    )


def _attention(spec: CoreSpec, program: Program, timing: Timing) -> AttentionFigures:
    """A tile of keys and one of values: the items of a whole group against the tiles' beats (docs/architecture.md, 5.3), and how long their loads lasted."""
    assert spec.config.memory is not None
    group, rows = spec.shape.group, spec.config.key_tile
    clocks = group * spec.attention.item_clocks / rows
    memory = 2 * spec.kv_layout.tile_beats(rows) / spec.config.memory.share / rows
    loads = [index for index, one in enumerate(program.instructions) if one.unit is Unit.LOADER and one.fields["target"] == LoadTarget.KV]
    decode = [number for number, size in enumerate(timing.passes) if size.decode]
    lasted = (timing.done[np.ix_(decode, loads)] - timing.start[np.ix_(decode, loads)]).sum()
    positions = len(loads) * sum(timing.passes[number].position + 1 for number in decode)
    taken = float(lasted) / (spec.shape.kv_heads * positions)
    return AttentionFigures(group=group, clocks=clocks, memory_clocks=memory, taken_clocks=taken, keeps_pace=clocks <= memory)


def pace_warning(found: AttentionFigures, what: str) -> str | None:
    """One line where attention does not keep pace with the memory."""
    if found.keeps_pace:
        return None
    most = int(found.group * found.memory_clocks / found.clocks)
    clocks = f"attention takes {found.clocks:.4g} clocks for a key and a value of a group of {found.group} query heads, the memory {found.memory_clocks:.4g}"
    rule = f"groups up to {most} keep pace" if most else "no group keeps pace"
    return f"{what}: {clocks}, so that it idles the more, the longer the context; {rule}"


def _roofline(traffic: Traffic, timing: Timing) -> RooflineFigures:
    """Linear layers and head under the read port's slope and the lookup array's plateau."""
    c, shape = traffic.spec.config, traffic.spec.shape

    def scored(size: PassSize) -> int:
        return size.tokens if size.serial else size.last

    points = []
    for name, decode in (("prefill", False), ("decode", True)):
        chosen = [(size, int(cycles)) for size, cycles in zip(timing.passes, timing.lengths, strict=True) if size.decode == decode]
        cycles = sum(length for _, length in chosen)
        moved = sum(traffic.total(size) for size, _ in chosen)
        if cycles and moved:
            products = sum(size.tokens * shape.ternary_weights + scored(size) * shape.vocabulary * shape.hidden for size, _ in chosen)
            points.append(RooflinePoint(name=name, operations_per_byte=products / moved, operations_per_cycle=products / cycles))
    return RooflineFigures(peak_operations_per_cycle=c.tables * c.columns * c.group * c.lanes, peak_bytes_per_cycle=c.beat_bytes, points=points)
