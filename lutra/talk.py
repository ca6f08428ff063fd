# SPDX-License-Identifier: Apache-2.0
"""Talking to a core at the other end of a serial line: on a board, or simulated with every bit of the line."""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lutra.hls_models.errors import LutraError, ToolError
from lutra.hls_models.uart import FRAME_BITS
from lutra.inputs import OnText, Writer
from lutra.link import Conversation, Device, Notice, Port
from lutra.progress import step

if TYPE_CHECKING:
    from lutra.hls_models.ternary.core import CoreSpec
    from lutra.hls_models.ternary.program import Program
    from lutra.mapping.tokenizer import Tokenizer

__all__ = ["BAUD", "SIMULATED", "SerialPort", "Turn", "open_port", "talk"]

BAUD = 1_000_000
"""Of the boards' bitstreams."""
SIMULATED = "sim:"
"""Begins the name of a simulated port; a compiled run follows."""


@dataclass
class Turn:
    """A prompt and its answer; ``notices``: what went wrong on the way and was mended."""

    prompt: str
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


class SerialPort:
    """A port of this machine, through pyserial; ``latency_s`` is that of USB adapters, which collect bytes for 16 ms, and of a busy host."""

    latency_s = 0.1

    def __init__(self, name: str, baud: float = BAUD) -> None:
        try:
            import serial
        except ImportError:
            raise ToolError("pyserial is not installed: pip install 'lutra[talk]'") from None
        self._error: type[Exception] = serial.SerialException
        self.byte_s, self._name = FRAME_BITS / baud, name
        try:
            self._serial = serial.Serial(name, int(baud))
        except (serial.SerialException, ValueError) as error:
            from serial.tools.list_ports import comports

            there = ", ".join(port.device for port in comports()) or "none"
            raise ToolError(f"{name}: cannot be opened as a serial port ({error}); ports of this machine: {there}") from None

    def write(self, data: bytes) -> None:
        with self._failing():
            self._serial.write(data)

    def read(self, seconds: float) -> bytes:
        with self._failing():
            self._serial.timeout = seconds
            first: bytes = self._serial.read(1)
            return first + self._serial.read(self._serial.in_waiting) if first else b""

    def close(self) -> None:
        self._serial.close()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (self._error, OSError) as error:
            raise ToolError(f"{self._name}: the serial port failed ({error}); was it unplugged?") from None


def open_port(name: str, spec: "CoreSpec", program: "Program", baud: float = BAUD) -> Port:
    """A serial port by its name, or with ``sim:`` the simulation of a core and its program."""
    if not name.startswith(SIMULATED):
        return SerialPort(name, baud)
    from lutra.cosim.serial import SimulatedPort

    with step("building the simulation"):
        return SimulatedPort(spec, program)


def talk(
    port: Port,
    spec: "CoreSpec",
    words: "Tokenizer",
    prompts: Iterable[str],
    *,
    tokens: int,
    on_text: OnText | None = None,
    on_notice: Notice | None = None,
    patient: bool = False,
) -> list[Turn]:
    """A conversation: each prompt is answered with up to ``tokens`` tokens, and nothing is computed twice.

    Parameters
    ----------
    port : is closed in the end
    spec : the core that must be there
    prompts : taken one by one, each when the answer before it is through
    on_text, on_notice : called with the answers' text as it comes, and with what went wrong and was mended
    patient : a prompt that is refused, or an interrupt, ends its turn and not the conversation (somebody types)
    """
    turns: list[Turn] = []

    def notice(text: str) -> None:
        if turns:
            turns[-1].notices.append(text)
        if on_notice:
            on_notice(text)

    with closing(port):
        device = Device(port, notice)
        device.connect(config_hash=spec.hash)
        conversation = Conversation(device)
        for prompt in prompts:
            turns.append(Turn(prompt))
            try:
                _answer(conversation, turns[-1], words, tokens, on_text)
            except (LutraError, KeyboardInterrupt) as error:
                if not patient or isinstance(error, ToolError):
                    raise
                notice(str(error) or "interrupted")
    return turns


def _answer(conversation: Conversation, turn: Turn, words: "Tokenizer", tokens: int, on_text: OnText | None) -> None:
    ids = words.encode(turn.prompt)
    # The core stops at one token; where there are several, the host stops it.
    stop = next(iter(words.stop)) if len(words.stop) == 1 else None
    writer = Writer(words, "", on_text)
    with closing(conversation.say(ids, tokens, stop)) as answer:
        for token in answer:
            writer.token(token)
            if token in words.stop:
                break
    turn.tokens, turn.text = writer.ids, words.decode(writer.ids)
