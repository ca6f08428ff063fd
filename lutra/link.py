# SPDX-License-Identifier: Apache-2.0
"""The host's end of the serial link: requests that are repeated until they are answered, runs whose tokens arrive, and a word on everything that went wrong."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lutra.hls_models.errors import LutraError, ModelError, ToolError
from lutra.hls_models.link import FLAG, MAX_WORDS, PROTOCOL, Decoder, Fault, Packet, PacketType, encode
from lutra.hls_models.link_bridge import ABORT, start_payload
from lutra.hls_models.ternary.registers import IDENTITY, VERSION, Register

__all__ = ["Conversation", "Device", "Notice", "Port", "RefusedError", "RestartedError", "Welcome"]

Notice = Callable[[str], None]
"""Called with one line about anything that went wrong and was mended."""
ATTEMPTS = 5
REPLY_BYTES = 400
"""Bytes' time that a request and its reply take at most: 66 bytes with every one escaped, once each way, and what the device still had to send."""


class Port(Protocol):
    """A serial port. ``byte_s``: seconds of a byte on the line; ``latency_s``: what drivers and adapters add to a reply."""

    byte_s: float
    latency_s: float

    def write(self, data: bytes) -> None: ...

    def read(self, seconds: float) -> bytes:
        """What has come, or comes within so many seconds."""
        ...

    def close(self) -> None: ...


class RefusedError(LutraError):
    """The device answered a request with ``fault``."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"the device refused {fault.meaning}")
        self.fault = fault


class RestartedError(LutraError):
    """The device was reset: what it had been told is lost."""


@dataclass(frozen=True)
class Welcome:
    """What a device says about itself."""

    context: int
    vocabulary: int

    @classmethod
    def of(cls, payload: bytes) -> "Welcome":
        if len(payload) != 6 or payload[0] != PROTOCOL:
            raise LutraError(f"the device speaks protocol {payload[0] if payload else 'unknown'}, must be {PROTOCOL}")
        return cls(int.from_bytes(payload[1:3], "little"), int.from_bytes(payload[3:6], "little"))


class Device:
    """A core at the other end of a serial line.

    Parameters
    ----------
    port : the line
    notice : told of what went wrong and was mended
    """

    def __init__(self, port: Port, notice: Notice) -> None:
        self._port, self.notice = port, notice
        self._decoder, self._sequence, self._greeting = Decoder(), 0, False
        self._events: list[Packet] = []
        self.welcome = Welcome(0, 0)
        self.reply_s = port.latency_s + REPLY_BYTES * port.byte_s

    def connect(self, *, config_hash: int | None = None) -> Welcome:
        """Resets the core and learns what it is; ``config_hash``: of the core that it must be.

        Raises
        ------
        ToolError : nothing answers
        LutraError : what answers is no such core
        """
        self._port.write(bytes([FLAG]))  # ends what an earlier host may have left half-sent
        self._decoder, self._greeting = Decoder(), True
        try:
            self.welcome = Welcome.of(self.request(PacketType.RESET).payload)
        finally:
            self._greeting = False
        self._events.clear()
        identity, version, low, high = self.read(Register.IDENTITY, 4)
        if identity != IDENTITY:
            raise LutraError(f"the device must identify itself as {IDENTITY:#x}, not {identity:#x}")
        if version >> 16 != VERSION >> 16:
            raise LutraError(f"the device's register map must have version {VERSION >> 16}, not {version >> 16}")
        if config_hash is not None and low | high << 32 != config_hash:
            raise LutraError(f"the device holds another core: its hash must be {config_hash:016x}, not {low | high << 32:016x}; load the bitstream of this run")
        return self.welcome

    def request(self, kind: PacketType, payload: bytes = b"") -> Packet:
        """The reply to a request, which is sent again until there is one.

        Raises
        ------
        RefusedError : the device does not take it
        RestartedError : the device was reset meanwhile
        ToolError : no reply to any of the attempts
        """
        self._sequence = self._sequence % 255 + 1  # 0 is that of replies to no request
        packet = Packet(kind, self._sequence, payload)
        for attempt in range(ATTEMPTS):
            if attempt:
                self.notice(f"no reply to {kind.name}: sent again")
            self._port.write(encode(packet))
            for found in self._arrivals(self.reply_s):
                if found.sequence == self._sequence and found.type < PacketType.TOKEN:
                    if found.type == PacketType.ERROR:
                        raise RefusedError(Fault(found.payload[0]))
                    return found
        raise ToolError(f"the device did not answer {ATTEMPTS} times: is it powered, loaded and set to this baud rate?")

    def read(self, register: Register, count: int = 1) -> list[int]:
        """Words of ascending registers."""
        payload = self.request(PacketType.READ, bytes([register, count])).payload
        return [int.from_bytes(payload[at : at + 4], "little") for at in range(0, len(payload), 4)]

    def write(self, register: Register, words: Sequence[int]) -> None:
        """Words, one after another, to one register."""
        for at in range(0, len(words), MAX_WORDS):
            self.request(PacketType.WRITE, bytes([register]) + b"".join(word.to_bytes(4, "little") for word in words[at : at + MAX_WORDS]))

    def start(self, tokens: Sequence[int], wanted: int, *, position: int = 0, stop: int | None = None) -> None:
        """Begins a run: prompt tokens from ``position`` on, then up to ``wanted`` tokens."""
        self.write(Register.TOKEN_INDEX, [position])
        self.write(Register.TOKEN, tokens)
        self.request(PacketType.START, start_payload(position, len(tokens), wanted, stop))

    def tokens(self, after: int) -> Iterator[int]:
        """The tokens of the run that was begun last, as they come, until it ends; ``after``: position of the first one. What the line lost is read again."""
        number = 0
        while True:
            event = self._event()
            if event is None:  # silence: a long pass, or the end was lost
                status, generated = self._state()
                if not status & 1 and not (event := self._event()):
                    self.notice("the end of the run was lost on the line: taken from the registers")
                    yield from self._missed(after, number, generated)
                    return
                if event is None:
                    continue
            done = event.type == PacketType.DONE
            total = int.from_bytes(event.payload, "little") - number if done else event.sequence - number & 0xFF
            if total:
                self.notice(f"{total} {'token was' if total == 1 else 'tokens were'} lost on the line: read again")
                yield from self._missed(after, number, number + total)
                number += total
            if done:
                return
            yield int.from_bytes(event.payload, "little")
            number += 1

    def abort(self, after: int, number: int) -> list[int]:
        """Ends the run at the end of its present pass; its tokens from ``number`` on, the first of all being at position ``after``."""
        self.write(Register.CONTROL, [ABORT])
        while self._state()[0] & 1:
            pass
        rest = list(self._missed(after, number, self._state()[1]))
        for _ in self._arrivals(self.reply_s):  # events of what has just been read
            pass
        self._events.clear()
        return rest

    def _state(self) -> tuple[int, int]:
        """(status, tokens generated)."""
        found = self.read(Register.STATUS, Register.GENERATED - Register.STATUS + 1)
        return found[0], found[-1]

    def _missed(self, after: int, begin: int, end: int) -> Iterator[int]:
        for number in range(begin, end):
            if after + number < self.welcome.context:
                self.write(Register.TOKEN_INDEX, [after + number])
                yield self.read(Register.TOKEN)[0]
            else:  # behind a full context there is no place for it: it is the best of the last pass
                self.write(Register.BEST_INDEX, [0])
                yield self.read(Register.BEST_ID)[0]

    def _event(self) -> Packet | None:
        if not self._events:
            for _ in self._arrivals(self.reply_s, events=1):
                pass
        return self._events.pop(0) if self._events else None

    def _arrivals(self, seconds: float, *, events: int | None = None) -> Iterator[Packet]:
        """Replies that come before nothing has for so many seconds; events are kept. With ``events``, until there are so many."""
        while events is None or len(self._events) < events:
            data = self._port.read(seconds)
            if not data:
                return
            for found in self._decoder.feed(data):
                if isinstance(found, Fault):
                    self.notice(f"from the device came {found.meaning}")
                elif found.type == PacketType.RESTARTED:
                    self._events.clear()
                    if self._greeting:  # it has just been switched on
                        continue
                    raise RestartedError("the device was reset")
                elif found.type in (PacketType.TOKEN, PacketType.DONE):
                    self._events.append(found)
                elif found.type == PacketType.ERROR and found.sequence == 0:
                    self.notice(f"the device reports {Fault(found.payload[0]).meaning}")
                else:
                    yield found


class Conversation:
    """Prompts and answers in one context: what was said before stays in the device's cache and is not computed again.

    Parameters
    ----------
    device : a connected one
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.ids: list[int] = []
        """Everything said, in order."""
        self._cached, self._lost = 0, False

    @property
    def room(self) -> int:
        """Tokens of context that are left."""
        return self._device.welcome.context - len(self.ids)

    def say(self, prompt: Sequence[int], wanted: int, stop: int | None = None) -> Generator[int, None, None]:
        """The answer to a prompt, token by token as the device writes them; it ends early at ``stop``, and where the caller closes it.

        Raises
        ------
        ModelError : prompt and answer do not fit what is left of the context
        """
        self._check(prompt, wanted)
        said, restarts = len(self.ids), 0
        self.ids += prompt
        answer, end = len(self.ids), len(self.ids) + wanted
        while True:
            begun = len(self.ids)
            try:
                if self._lost:
                    self._device.connect()
                    self._lost = False
                    if begun > answer and (begun == end or self.ids[-1] == stop):
                        return
                self._device.start(self.ids[self._cached :], end - begun, position=self._cached, stop=stop)
                for token in self._device.tokens(begun):
                    self.ids.append(token)
                    yield token
                self._cached = len(self.ids) - 1  # the last one has been chosen, not computed
                return
            except RestartedError:
                self._cached, self._lost = 0, True
                restarts += 1
                if restarts == ATTEMPTS:
                    del self.ids[said:]
                    raise
                self._device.notice("the device was reset: what was said so far is computed again")
            except (GeneratorExit, KeyboardInterrupt):
                try:
                    self.ids += self._device.abort(begun, len(self.ids) - begun)
                    self._cached = len(self.ids) - 1
                except RestartedError:
                    self._cached, self._lost = 0, True
                raise
            except LutraError:
                del self.ids[said:]
                raise

    def _check(self, prompt: Sequence[int], wanted: int) -> None:
        welcome = self._device.welcome
        if not prompt:
            raise ModelError("prompt must have at least one token")
        if wanted < 1:
            raise ModelError(f"tokens must be at least 1, not {wanted}")
        if len(prompt) + wanted - 1 > self.room:  # the last token is written, not read
            left = f"{self.room} of {welcome.context} tokens of context are left"
            raise ModelError(f"prompt of {len(prompt)} tokens and {wanted} more must fit: {left}; shorten it, ask for fewer, or begin anew")
        bad = next((token for token in prompt if not 0 <= token < welcome.vocabulary), None)
        if bad is not None:
            raise ModelError(f"prompt ids must be in 0 to {welcome.vocabulary - 1}, not {bad}")
