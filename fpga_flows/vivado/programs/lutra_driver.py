# SPDX-License-Identifier: Apache-2.0
"""Driver of a core through its control registers (lutra_registers.py)."""

import struct
import time

import lutra_registers as r
from lutra_drafts import NgramDrafts, speculate


class DriverError(Exception):
    """The core is not what it must be, or does not answer."""


class Accelerator:
    """A core behind memory-mapped registers.

    Parameters
    ----------
    mmio : has ``read(offset)`` and ``write(offset, value)`` of 32-bit words (``pynq.MMIO``).
    timeout_s : seconds that the core may take to stop, or for a token, the first one with its prompt included.
    """

    def __init__(self, mmio, *, timeout_s=60.0):
        self._mmio, self._timeout_s = mmio, timeout_s
        self.cycles = 0
        """Clocks of all runs that have ended: in these the core worked, not the host."""

    def read(self, register):
        return self._mmio.read(register)

    def write(self, register, value):
        self._mmio.write(register, value)

    def start(self, bases, config_hash=None):
        """Lets the core run on a model that lies in memory: regions that begin at ``bases``, one byte address per port, each a multiple of 4096.

        Raises
        ------
        ValueError : bases that no port takes
        DriverError : another core than that of ``config_hash``, or it does not leave reset
        """
        if len(bases) != r.PORT_COUNT:
            raise ValueError(f"bases must be {r.PORT_COUNT}, one per port, not {len(bases)}")
        for base in bases:
            if base % 4096 or base >> 12 > r.PORT_BASE_0_PAGE_MASK:
                raise ValueError(f"base must be a multiple of 4096 below 2^40, not {base:#x}")
        self.stop()
        for port, base in enumerate(bases):
            self.write(r.PORT_BASE_0 + 4 * port, base >> 12)
        self.write(r.INTERRUPT_STATUS, r.INTERRUPT_STATUS_DONE_MASK | r.INTERRUPT_STATUS_TOKEN_MASK | r.INTERRUPT_STATUS_ERROR_MASK)
        self.write(r.RUN, r.RUN_RUN_MASK)
        self._wait(lambda: self.read(r.STATE) & r.STATE_RUNNING_MASK, "does not leave reset")
        identity, version = self.read(r.IDENTITY), self.read(r.VERSION)
        if identity != r.EXPECTED_IDENTITY or version >> 16 != r.EXPECTED_VERSION >> 16:
            raise DriverError(f"the core must have identity {r.EXPECTED_IDENTITY:#x} and map {r.EXPECTED_VERSION >> 16}, not {identity:#x} and {version >> 16}")
        found = self.read(r.CONFIG_HASH_LOW) | self.read(r.CONFIG_HASH_HIGH) << 32
        if config_hash is not None and found != config_hash:
            raise DriverError(f"the bitstream holds another core: its hash must be {config_hash:016x}, not {found:016x}")

    def stop(self):
        """Resets the core, whatever it does, once its memory has answered all that it asked for."""
        self.write(r.RUN, 0)
        self._wait(lambda: not self.read(r.STATE) & r.STATE_RUNNING_MASK, "does not stop")

    def generate(self, prompt, count, *, position=0, stop=None, drafts=0):
        """Tokens behind ``prompt``, whose first token is at ``position`` (above 0: what an earlier run left there is kept), as they are chosen.

        At most ``count``, up to the token ``stop``, and up to the end of the context. The last one may have no place in it: it is then taken from the best.
        ``drafts``: so many n-gram drafts at most are verified in a pass; the tokens are the same, several at a time.

        Raises
        ------
        DriverError : the memory answered with an error, or the core with nothing
        """
        if drafts:
            yield from self._speculate(prompt, count, position, stop, drafts)
            return
        self.write(r.MAX_NEW, count)
        self.write(r.STOP_TOKEN, 0 if stop is None else stop | r.STOP_TOKEN_ENABLED_MASK)
        self._begin(prompt, position, r.CONTROL_START_MASK)
        given = 0
        while True:
            # In this order: what is generated when the run has ended is all of it.
            ended = []
            self._wait(lambda given=given, ended=ended: self._progress(given, ended), "does not choose a token")
            for index in range(position + len(prompt) + given, position + len(prompt) + self.read(r.GENERATED)):
                yield self._token(index)
                given += 1
            if ended:
                self.cycles += self.read(r.CYCLES)
                return

    def verify(self, ids, position):
        """The choice behind each of ``ids``, the first of which is at ``position``, from one pass: what decoding them one by one would choose.

        Raises
        ------
        ValueError : more ids than the core verifies together, or none
        DriverError : as ``generate``
        """
        if not 1 <= len(ids) <= r.DRAFT_LANES:
            raise ValueError(f"ids must be 1 to {r.DRAFT_LANES}, not {len(ids)}")
        self._begin(ids, position, r.CONTROL_VERIFY_MASK)
        ended = []
        self._wait(lambda: self._progress(0, ended), "does not verify")
        self.cycles += self.read(r.CYCLES)
        choices = []
        for place in range(len(ids)):
            self.write(r.CHOICE_INDEX, place)
            choices.append(self.read(r.CHOICE))
        return choices

    def best(self):
        """[(token, logit)] of the last choice, best first: as many as the core keeps, or the vocabulary has."""
        scale = _float(self.read(r.ACTIVATION_SCALE))
        found = []
        for rank in range(r.BEST_COUNT):
            self.write(r.BEST_INDEX, rank)
            found.append((self.read(r.BEST_ID), _float(self.read(r.BEST_SCORE)) * scale))
        return found

    def counters(self):
        """Clocks and passes of the last run, and clocks in which each unit worked."""
        names = [name for name in r.REGISTERS if name in ("CYCLES", "PASSES") or name.startswith("BUSY_")]
        return {name.lower(): self.read(r.REGISTERS[name][0]) for name in names}

    def _speculate(self, prompt, count, position, stop, drafts):
        (first,) = self.generate(prompt, 1, position=position)
        yield first
        count = min(count, r.CONTEXT - position - len(prompt) + 1)
        stops = () if stop is None else (stop,)
        for tokens in speculate(prompt, first, count, drafts + 1, lambda ids, at: self.verify(ids, position + at), NgramDrafts(), stop=stops):
            yield from tokens

    def _begin(self, tokens, position, control):
        self.write(r.TOKEN_INDEX, position)
        for token in tokens:
            self.write(r.TOKEN, token)
        self.write(r.START_POSITION, position)
        self.write(r.PROMPT_LENGTH, len(tokens))
        self.write(r.INTERRUPT_STATUS, r.INTERRUPT_STATUS_DONE_MASK)
        self.write(r.CONTROL, control)

    def _progress(self, given, ended):
        if self.read(r.STATE) & r.STATE_ERROR_MASK:
            raise DriverError("the memory answered with an error: are the regions whole, and below 2^40?")
        if self.read(r.INTERRUPT_STATUS) & r.INTERRUPT_STATUS_DONE_MASK:
            ended.append(True)
        return ended or self.read(r.GENERATED) > given

    def _token(self, index):
        if index >= r.CONTEXT:
            self.write(r.BEST_INDEX, 0)
            return self.read(r.BEST_ID)
        self.write(r.TOKEN_INDEX, index)
        return self.read(r.TOKEN)

    def _wait(self, done, what):
        end = time.monotonic() + self._timeout_s
        while not done():
            if time.monotonic() > end:
                raise DriverError(f"the core {what} ({self._timeout_s:g} s)")


def _float(word):
    return struct.unpack("<f", struct.pack("<I", word))[0]
