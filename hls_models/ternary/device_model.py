# SPDX-License-Identifier: Apache-2.0
"""Golden model of a core beside a processor: what every access to its registers answers and does, and the tokens that it chooses from the model in memory."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.ternary.control import BASE_BITS, Entry, Interrupt, SystemRegister, control_map
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.executor import Executor, Pass
from lutra.hls_models.ternary.memory import PORT_BYTES
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.ternary.registers import IDENTITY, VERSION, Register

__all__ = ["DECODE_ERROR", "OKAY", "SLAVE_ERROR", "DeviceModel", "MemoryReader"]

OKAY, SLAVE_ERROR, DECODE_ERROR = 0, 2, 3
MemoryReader = Callable[[int, int], NDArray[np.uint8]]
"""(byte address, bytes) to those bytes; LookupError where there is no memory."""
INDEX_BITS = 16
UNCOUNTED = tuple(register for register in Register if register is Register.CYCLES or register.name.startswith("BUSY_"))


class DeviceModel:
    """Registers of ``hls_models.ternary.control`` and what stands behind them.

    Time passes by accesses: a pass ends before every read of STATUS, GENERATED or INTERRUPT_STATUS, and the core starts and stops at once. The counters of
    clocks read as 0. Keys and values are the golden executor's own and do not go to memory.

    Parameters
    ----------
    program : whose regions and labels the memory holds; its own image is not looked at.
    memory : what the ports read.
    """

    def __init__(self, spec: CoreSpec, program: Program, memory: MemoryReader) -> None:
        config = spec.config.memory
        assert config is not None  # a caller's slip
        self._spec, self._program, self._memory, self._ports = spec, program, memory, config.ports
        self._entries: dict[int, Entry] = {entry.offset: entry for entry in control_map(config.ports)}
        self._id_mask = (1 << max(1, (spec.shape.vocabulary - 1).bit_length())) - 1
        self._tokens = [0] * spec.shape.context
        self._system = {entry.offset // 4: 0 for entry in self._entries.values() if entry.offset >= 4 * SystemRegister.RUN}
        self._system[SystemRegister.PORTS] = config.ports
        self._core: dict[int, int] = {}
        self._executor: Executor | None = None
        self._run: Iterator[Pass] | None = None
        # Memories of the core: a reset does not clear them.
        self._choices = [0] * max(2, spec.config.draft_lanes)
        self._best = [(0, 0)] * spec.config.best

    @property
    def interrupt(self) -> bool:
        return bool(self._system[SystemRegister.INTERRUPT_ENABLE] & self._system[SystemRegister.INTERRUPT_STATUS])

    def read(self, address: int) -> tuple[int, int]:
        """(data, response) of a read of the word at a byte address."""
        word, entry = address // 4, self._entries.get(address // 4 * 4)
        if entry is None:
            return 0, DECODE_ERROR
        if not entry.readable:
            return 0, SLAVE_ERROR
        if word in (Register.STATUS, Register.GENERATED, SystemRegister.INTERRUPT_STATUS):
            self._step()
        return self._value(word), OKAY

    def write(self, address: int, data: int, strobe: int = 0xF) -> int:
        """Response of a write of the bytes that ``strobe`` names."""
        word, entry = address // 4, self._entries.get(address // 4 * 4)
        if entry is None:
            return DECODE_ERROR
        running = self._executor is not None
        if not entry.writable or (word < SystemRegister.RUN and not running) or (word >= SystemRegister.PORT_BASE and running):
            return SLAVE_ERROR
        named = sum(0xFF << 8 * byte for byte in range(4) if strobe >> byte & 1)
        if not named:
            return OKAY
        merged = (data & named) | (self._value(word) & ~named)
        if word == SystemRegister.INTERRUPT_STATUS:
            self._system[word] &= ~(merged & named)
        elif word == SystemRegister.RUN:
            self._set_running(bool(merged & 1))
        elif word == SystemRegister.INTERRUPT_ENABLE:
            self._system[word] = merged & (1 << len(Interrupt)) - 1
        elif word >= SystemRegister.PORT_BASE:
            self._system[word] = merged & (1 << BASE_BITS) - 1
        else:
            self._write_core(Register(word), merged)
        return OKAY

    def _value(self, word: int) -> int:
        """What a word reads as."""
        if word == SystemRegister.STATE:
            return int(self._executor is not None)
        if word >= SystemRegister.RUN:
            return self._system[word]
        if self._executor is None:
            return 0
        core = self._core
        match word:
            case Register.IDENTITY:
                return IDENTITY
            case Register.VERSION:
                return VERSION
            case Register.CONFIG_HASH_LOW:
                return self._spec.hash & 0xFFFFFFFF
            case Register.CONFIG_HASH_HIGH:
                return self._spec.hash >> 32
            case Register.STATUS:
                return int(self._run is not None) | core.get(word, 0)
            case Register.TOKEN:
                return self._tokens[core.get(Register.TOKEN_INDEX, 0)]
            case Register.BEST_ID | Register.BEST_SCORE:
                return self._best[core.get(Register.BEST_INDEX, 0)][word == Register.BEST_SCORE]
            case Register.CHOICE:
                return self._choices[core.get(Register.CHOICE_INDEX, 0)]
        return 0 if word in UNCOUNTED else core.get(word, 0)

    def _set_running(self, run: bool) -> None:
        self._system[SystemRegister.RUN] = int(run)
        if not run:
            self._executor = self._run = None
        elif self._executor is None:
            parts = [self._memory(self._system[SystemRegister.PORT_BASE + port] << 12, self._program.beats * PORT_BYTES) for port in range(self._ports)]
            image = np.stack([part.reshape(-1, PORT_BYTES) for part in parts], axis=1).reshape(-1)
            self._executor = Executor(self._spec, replace(self._program, image=image))
            self._core = {}

    def _write_core(self, register: Register, value: int) -> None:
        core = self._core
        if register == Register.CONTROL:
            if value & 5 and self._run is None:
                self._run = self._passes(bool(value & 4))
                core[Register.GENERATED] = core[Register.PASSES] = 0
                core[Register.STATUS] = 2  # the first run of all loads the program
        elif register == Register.TOKEN:
            self._tokens[core.get(Register.TOKEN_INDEX, 0)] = value & self._id_mask
            core[Register.TOKEN_INDEX] = core.get(Register.TOKEN_INDEX, 0) + 1
        elif register == Register.STOP_TOKEN:
            core[register] = value & (self._id_mask | 1 << 31)
        elif register == Register.BEST_INDEX:
            core[register] = value & (1 << max(0, self._spec.config.best - 1).bit_length()) - 1
        elif register == Register.CHOICE_INDEX:
            core[register] = value & (1 << (max(2, self._spec.config.draft_lanes) - 1).bit_length()) - 1
        else:
            core[register] = value & (1 << INDEX_BITS) - 1

    def _passes(self, verify: bool) -> Iterator[Pass]:
        executor, core = self._executor, self._core
        assert executor is not None
        start, length = core.get(Register.START_POSITION, 0), core.get(Register.PROMPT_LENGTH, 0)
        prompt = self._tokens[start : start + length]
        if verify:
            return iter([executor.verify(prompt, start)])
        word = core.get(Register.STOP_TOKEN, 0)
        return executor.generate(prompt, core.get(Register.MAX_NEW, 0), start=start, stop=word & self._id_mask if word >> 31 else None)

    def _step(self) -> None:
        """One pass of a run, if there is one."""
        if self._run is None:
            return
        done = next(self._run, None)
        if done is None:
            self._run = None
            self._system[SystemRegister.INTERRUPT_STATUS] |= 1 << Interrupt.DONE
            return
        self._core[Register.PASSES] += 1
        if not done.last:
            return
        assert done.best is not None and done.activation_scale is not None  # of a pass that ends with a choice
        ids, scores = done.best
        self._best[: len(ids)] = [(int(token), int(score)) for token, score in zip(ids, scores, strict=True)]
        self._choices[: len(done.choices)] = done.choices
        self._core[Register.ACTIVATION_SCALE] = int(done.activation_scale[-1])
        self._system[SystemRegister.INTERRUPT_STATUS] |= 1 << Interrupt.TOKEN
        if not done.serial:
            at = self._core.get(Register.START_POSITION, 0) + self._core.get(Register.PROMPT_LENGTH, 0) + self._core[Register.GENERATED]
            self._core[Register.GENERATED] += 1
            if at < len(self._tokens) and done.token is not None:
                self._tokens[at] = done.token
