# SPDX-License-Identifier: Apache-2.0
"""Golden values of the companion chip: SRAM, scalars and index register, changed by one instruction after the other (docs/architecture.md, 4.5).

Values do not depend on timing as long as ``check_program`` finds nothing: an instruction that does not drain must not touch what those in the
pipeline write.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models import floats
from lutra.hls_models.floats import BF16, FP32
from lutra.hls_models.pim import arithmetic, functions
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.instructions import PARTIALS, SCALARS, Add, Kind, Scale, Unit, Work
from lutra.hls_models.pim.program import Instruction, Receive, Scalar, ScalarOperation, Statistic, Vector

__all__ = ["MINUS_INFINITY", "Companion", "InFlight", "check", "check_program", "order", "partial_sums"]

Bits = NDArray[np.uint32]
Indices = NDArray[np.int64]

MINUS_INFINITY = np.uint32(FP32.sign | FP32.infinity)
SMALLEST = np.float32(2.0**-126)


def order(bits: ArrayLike) -> Bits:
    """Keys of fp32 patterns by which MAX and ARGMAX compare: both zeros are equal, every NaN is the largest."""
    x = np.asarray(bits, np.uint32)
    magnitude = x & np.uint32(FP32.magnitude)
    key = np.where(x & np.uint32(FP32.sign), ~x, x | np.uint32(FP32.sign))
    key = np.where(magnitude < FP32.min_normal, np.uint32(FP32.sign), key)
    return np.where(magnitude > FP32.infinity, np.uint32(0xFFFFFFFF), key).astype(np.uint32)


def partial_sums(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Value i is added to partial sum i % PARTIALS (all from +0), in order; then ((p0+p1)+(p2+p3))."""
    padded = np.zeros((-(-len(values) // PARTIALS) + 1, PARTIALS), np.float32)
    padded.reshape(-1)[PARTIALS : PARTIALS + len(values)] = values
    with np.errstate(invalid="ignore", over="ignore"):
        sums = np.add.accumulate(padded, axis=0, dtype=np.float32)
        flushed = bool(((np.abs(sums) < SMALLEST) & (sums != 0)).any())
    if flushed:  # a subnormal sum is zero before the next one is added
        sums = padded[:1]
        for row in padded[1:]:
            sums = arithmetic.add(sums, row)
    # A place without a value added +0, which changes nothing: no sum is -0.
    return arithmetic.tree_sum(sums[-1])


def check(instruction: Instruction, config: PimConfig) -> None:
    """Raises ValueError where the mapping made an instruction that this hardware cannot carry out."""
    work = Work.of(instruction, config)
    work.pack()
    for name, value in (("groups", work.groups), ("channels", work.channels), ("split", work.split)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if isinstance(instruction, Scalar):
        return
    if work.channel + work.channels > config.channels or work.mask >> config.channels:
        raise ValueError(f"channels must be below {config.channels}, not {work.channel} to {work.channel + work.channels - 1}, mask {work.mask:#x}")
    segments = -(-work.channels // work.split)
    if segments > 1 and work.step < work.groups * work.split:
        raise ValueError(f"head_step must be at least groups * split = {work.groups * work.split}, not {work.step}: segments would overlap")
    if work.statistic == Statistic.ARGMAX and segments > 1:
        raise ValueError(f"ARGMAX takes one segment, not {segments}")
    if work.keep and work.statistic not in (Statistic.MAX, Statistic.ARGMAX):
        raise ValueError(f"keep needs MAX or ARGMAX, not {work.statistic.name}")
    last = segments - 1
    for name, scalar in (("scale", work.s + last * (work.scale != Scale.NONE)), ("stat", work.stat + last * (work.statistic == Statistic.MAX))):
        if scalar >= SCALARS:
            raise ValueError(f"{name} must be at most {SCALARS - 1}, not {scalar}")
    if work.statistic in (Statistic.MAX, Statistic.ARGMAX) and _scalars(work) & _stats(work):
        raise ValueError(f"stat must not be a scalar that items are still computed with, not {work.stat}")
    unit = config.words_per_beat if work.wide else 1
    for name, base in _bases(work).items():
        if base % unit or base + _span(work, config) > config.sram_words:
            raise ValueError(f"{name} must be a multiple of {unit} and end in {config.sram_words} words, not {base} and {base + _span(work, config)}")
        if work.store and base != work.dst and abs(base - work.dst) < _span(work, config):
            raise ValueError(f"{name} must be dst or apart from it by {_span(work, config)} words, not by {abs(base - work.dst)}")


def _bases(work: Work) -> dict[str, int]:
    """SRAM addresses that an instruction uses; all are read but ``dst``."""
    used = {
        "a": work.kind == Kind.VECTOR or work.add != Add.NONE,
        "b": (work.kind == Kind.VECTOR and work.add == Add.WORD) or work.gain or work.residual,
        "c": work.offset,
        "dst": work.store,
    }
    return {name: getattr(work, name) for name, is_used in used.items() if is_used}


def _scalars(work: Work) -> set[int]:
    """Scalars that items are computed with."""
    if work.scale != Scale.SCALAR and work.add != Add.SCALAR:
        return set()
    return set(range(work.s, work.s + -(-work.channels // work.split)))


def _stats(work: Work) -> set[int]:
    """Scalars that a statistic is written to."""
    if work.statistic == Statistic.NONE:
        return set()
    return set(range(work.stat, work.stat + (-(-work.channels // work.split) if work.statistic == Statistic.MAX else 1)))


def _span(work: Work, config: PimConfig) -> int:
    """Words from a base to the end of what is touched."""
    inner = min(work.split, work.channels)
    last = (work.groups - 1) * work.split + inner - 1 + (-(-work.channels // work.split) - 1) * work.step
    return (last + 1) * (config.words_per_beat if work.wide else 1)


class InFlight:
    """What the instructions in the pipeline have not written yet: the one definition of what may follow without draining.

    ``conflict`` of an instruction, then ``enter`` it, in program order.
    """

    def __init__(self, config: PimConfig) -> None:
        self._config = config
        self._before: Work | None = None
        self._words: list[tuple[int, int]] = []
        self._results: set[int] = set()

    def conflict(self, work: Work) -> str | None:
        """What of an instruction is still in use by those in the pipeline; None where it waits for them or touches nothing of theirs."""
        if not work.follows(self._before):
            return None
        span = _span(work, self._config)
        for name, base in _bases(work).items():
            if any(base < end and start < base + span for start, end in self._words):
                return f"{name} = {base}"
        return "scalars" if self._results & (_scalars(work) | (_stats(work) if work.keep else set())) else None

    def enter(self, work: Work) -> None:
        """Goes on behind an instruction."""
        if not work.follows(self._before):
            self._words, self._results = [], set()
        self._before = work
        if work.store:
            self._words.append((work.dst, work.dst + _span(work, self._config)))
        self._results |= _stats(work)


def check_program(instructions: Sequence[Instruction], config: PimConfig) -> None:
    """``check`` of all; and ValueError where an instruction that follows without draining would read or write what is not written yet."""
    pipeline = InFlight(config)
    for number, instruction in enumerate(instructions):
        try:
            check(instruction, config)
        except ValueError as error:
            raise ValueError(f"instruction {number}: {error}") from None
        work = Work.of(instruction, config)
        if used := pipeline.conflict(work):
            raise ValueError(f"instruction {number}: {used} must not be in use by one before it that is not drained")
        pipeline.enter(work)


class Companion:
    """State of a companion chip.

    Attributes
    ----------
    sram
        (words, B) uint32, fp32 patterns.
    scalars
        (32,) uint32, fp32 patterns.
    index
        Of the largest element so far (ARGMAX).
    """

    def __init__(self, config: PimConfig) -> None:
        self.config = config
        self.sram: Bits = np.zeros((config.sram_words, config.banks), np.uint32)
        self.scalars: Bits = np.zeros(SCALARS, np.uint32)
        self.index = 0

    def receive(self, instruction: Receive, readouts: ArrayLike) -> Bits:
        """Takes read-outs (groups, channels, B, or V where wide) uint16 bf16; returns what they became, same shape, fp32 bits uint32."""
        work = Work.of(instruction, self.config)
        lanes = self.config.lanes if work.wide else self.config.banks
        x = np.asarray(readouts, np.uint32).reshape(work.items, lanes) << np.uint32(16)
        return self._run(work, x).reshape(work.groups, work.channels, lanes)

    def vector(self, instruction: Vector) -> NDArray[np.uint16]:
        """Returns the beats (n, V) bf16 that every channel of the mask is sent, n = 0 without a mask; narrow ones fill B values."""
        work = Work.of(instruction, self.config)
        y = self._run(work, self._read(work, work.a))
        beats = np.zeros((work.items if work.mask else 0, self.config.lanes), np.uint16)
        beats[:, : y.shape[1]] = floats.convert(FP32, BF16, y[: len(beats)])
        return beats

    def scalar(self, instruction: Scalar) -> None:
        """Changes a scalar."""
        s, k, coefficients = arithmetic.values(self.scalars), np.uint32(instruction.k), self.config.companion.functions
        a, b, constant = s[instruction.a], s[instruction.b], arithmetic.values(k)
        pattern = self.scalars[instruction.a : instruction.a + 1]
        result: ArrayLike
        match instruction.operation:
            case ScalarOperation.COPY:
                result = pattern[0]
            case ScalarOperation.ADD:
                result = arithmetic.bits(arithmetic.add(a, b))
            case ScalarOperation.MUL:
                result = arithmetic.bits(arithmetic.mul(a, b))
            case ScalarOperation.MULK:
                result = arithmetic.bits(arithmetic.mul(a, constant))
            case ScalarOperation.ADDK:
                result = arithmetic.bits(arithmetic.add(a, constant))
            case ScalarOperation.RECIPROCAL:
                result = functions.reciprocal(pattern, coefficients)[0]
            case ScalarOperation.RSQRT:
                result = functions.rsqrt(pattern, coefficients)[0]
        self.scalars[instruction.d] = result

    def execute(self, instruction: Instruction, readouts: ArrayLike | None = None) -> NDArray[np.uint16] | None:
        """Any instruction; RECEIVE takes ``readouts``, VECTOR returns its beats."""
        if isinstance(instruction, Receive):
            self.receive(instruction, np.zeros(0) if readouts is None else readouts)
        elif isinstance(instruction, Scalar):
            self.scalar(instruction)
        else:
            return self.vector(instruction)
        return None

    def _words(self, work: Work, base: int) -> Indices:
        """SRAM words of every item: (items, 1), or (items, V/B) where wide."""
        i = np.arange(work.items)
        c = i % work.channels
        w = i // work.channels * work.split + c % work.split + c // work.split * work.step
        return (base + w[:, None] * self.config.words_per_beat + np.arange(self.config.words_per_beat)) if work.wide else (base + w)[:, None]

    def _read(self, work: Work, base: int) -> Bits:
        return self.sram[self._words(work, base)].reshape(work.items, -1)

    def _values(self, work: Work, base: int) -> NDArray[np.float32]:
        return arithmetic.values(self._read(work, base))

    def _run(self, work: Work, x: Bits) -> Bits:
        """Items (n, lanes) through the pipeline; what is off leaves the pattern as it is."""
        coefficients = self.config.companion.functions
        lanes = x.shape[1]
        c = np.arange(work.items) % work.channels
        segment = c // work.split
        y, s = x, arithmetic.values(self.scalars)
        if work.add == Add.WORD:
            y = arithmetic.bits(arithmetic.add(arithmetic.values(y), self._values(work, work.a if work.kind == Kind.RECEIVE else work.b)))
        elif work.add == Add.SCALAR:
            y = arithmetic.bits(arithmetic.sub(arithmetic.values(y), s[work.s]))
        if work.scale == Scale.SCALAR:
            y = arithmetic.bits(arithmetic.mul(arithmetic.values(y), s[work.s + segment][:, None]))
        elif work.scale == Scale.K:
            y = arithmetic.bits(arithmetic.mul(arithmetic.values(y), arithmetic.values(np.uint32(work.k))))
        if work.gain:
            y = arithmetic.bits(arithmetic.mul(arithmetic.values(y), self._values(work, work.b)))
        if work.offset:
            y = arithmetic.bits(arithmetic.add(arithmetic.values(y), self._values(work, work.c)))
        match work.unit:
            case Unit.GELU:
                y = functions.gelu(y, coefficients)
            case Unit.GELU_ERF:
                y = functions.gelu_erf(y, coefficients)
            case Unit.RELU:
                y = np.where(y >> np.uint32(31), np.uint32(0), y)
            case Unit.EXP2:
                y = floats.convert(FP32, BF16, functions.exp2(y, coefficients)) << np.uint32(16)
        if work.residual:
            y = arithmetic.bits(arithmetic.add(arithmetic.values(y), self._values(work, work.b)))
        position = np.arange(work.items) // work.channels * work.split + c % work.split
        element = position[:, None] * lanes + np.arange(lanes)
        valid = element < work.valid
        y = np.where(valid, y, np.uint32(0))
        if work.store:
            self.sram[self._words(work, work.dst)] = y.reshape(work.items, -1, self.config.banks)
        if work.statistic != Statistic.NONE:
            self._gather(work, y, valid, element, segment)
        return y

    def _gather(self, work: Work, y: Bits, valid: NDArray[np.bool_], element: Indices, segment: Indices) -> None:
        if work.statistic in (Statistic.SUM, Statistic.SUMSQ):
            x = arithmetic.values(y)
            if work.statistic == Statistic.SUMSQ:
                x = arithmetic.mul(x, x)
            # Lanes that a word does not have add +0.
            full = np.zeros((len(x), self.config.lanes), np.float32)
            full[:, : x.shape[1]] = x
            self.scalars[work.stat] = arithmetic.bits(partial_sums(arithmetic.tree_sum(full)))
            return
        candidates = np.where(valid, y, MINUS_INFINITY)
        keys = np.where(valid, order(y).astype(np.int64), -1)
        for number in range(int(segment.max()) + 1):
            mine = segment == number
            values, ranks = candidates[mine].reshape(-1), keys[mine].reshape(-1)
            best = int(ranks.argmax())
            register = work.stat + number
            if not work.keep or ranks[best] > int(order(self.scalars[register])):
                self.scalars[register] = values[best]
                if work.statistic == Statistic.ARGMAX:
                    self.index = (work.k + int(element[mine].reshape(-1)[best])) & 0xFFFFFFFF
