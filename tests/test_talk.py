# SPDX-License-Identifier: Apache-2.0
"""Conversations with a core over a serial line, host program to RTL and back through every bit of the UART; whatever the line does, the device recovers."""

import json
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from smallest import CONFIG, SHAPE

from lutra import api
from lutra.cli import main
from lutra.cosim.serial import SimulatedPort
from lutra.hls_models.errors import LutraError, ModelError, ToolError
from lutra.hls_models.link import Decoder, Fault, Packet, PacketType, encode
from lutra.hls_models.link_bridge import BridgeModel
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.executor import Executor
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.ternary.registers import IDENTITY, VERSION, Register
from lutra.link import Conversation, Device, RefusedError, Welcome
from lutra.mapping.exporter import export
from lutra.mapping.importer import NORM_NAMES, PLACES
from lutra.rtl.link.system import PATIENCE_BYTES
from lutra.talk import SerialPort

ALPHABET = list("\nabcdefghijklmnopqrstuvwxyz")
PROMPTS = [[3, 1, 4, 1, 5, 9], [2, 6], [5]]
WANTED = 5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled run of a small model of random weights."""
    folder, rng = tmp_path_factory.mktemp("models") / "small", np.random.default_rng(1)
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (SHAPE.vocabulary, SHAPE.hidden), "model.norm.weight": (SHAPE.hidden,)}
    sizes |= {f"model.layers.0.{PLACES[m.name]}.weight": (m.outputs, m.inputs) for m in SHAPE.linears()}
    sizes |= {f"model.layers.0.{NORM_NAMES[name][0]}.weight": (size,) for name, size in SHAPE.norms().items()}
    weights = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    export(folder, SHAPE, weights, ALPHABET, {"held_out_loss": 1.0, "steps": 1, "batch": 1, "seed": 1, "dropout": 0.0, "lr": 1e-3}, None, "nothing")
    return api.compile_model(folder, CONFIG, tmp_path_factory.mktemp("runs") / "small").path


@pytest.fixture(scope="module")
def program(run: Path) -> Program:
    return Program.load(run / "program")


@pytest.fixture(scope="module")
def spec(program: Program) -> CoreSpec:
    return CoreSpec(config=CONFIG, shape=program.shape)


@pytest.fixture
def port(spec: CoreSpec, program: Program) -> Iterator[SimulatedPort]:
    with closing(SimulatedPort(spec, program)) as port:
        yield port


def answers(spec: CoreSpec, program: Program, prompts: list[list[int]], wanted: int = WANTED) -> list[list[int]]:
    """The golden model's: each prompt follows the last token of the answer before it, which has been chosen and not computed."""
    golden, said, found = Executor(spec, program), list[int](), list[list[int]]()
    for prompt in prompts:
        start = max(0, len(said) - 1)
        said += prompt
        found.append([done.token for done in golden.generate(said[start:], wanted, start=start) if done.token is not None])
        said += found[-1]
    return found


class Lossy:
    """A port with a line that does something to bytes: ``there`` and ``back`` are given a byte and its number, and return what becomes of it."""

    Damage = Callable[[int, int], bytes]

    def __init__(self, port: SimulatedPort, there: Damage | None = None, back: Damage | None = None) -> None:
        self.byte_s, self.latency_s = port.byte_s, port.latency_s
        self._port, self._there, self._back, self._counts = port, there, back, [0, 0]

    def write(self, data: bytes) -> None:
        self._port.write(self._damaged(data, self._there, 0))

    def read(self, seconds: float) -> bytes:
        while data := self._port.read(seconds):
            if left := self._damaged(data, self._back, 1):
                return left
        return b""

    def close(self) -> None:
        self._port.close()

    def _damaged(self, data: bytes, damage: Damage | None, way: int) -> bytes:
        begin = self._counts[way]
        self._counts[way] += len(data)
        return data if damage is None else b"".join(damage(byte, begin + i) for i, byte in enumerate(data))


def converse(port: SimulatedPort | Lossy, prompts: list[list[int]] = PROMPTS, wanted: int = WANTED) -> tuple[list[list[int]], list[str]]:
    """(answers, what the host said about the line)."""
    notices: list[str] = []
    device = Device(port, notices.append)
    device.connect()
    conversation = Conversation(device)
    return [list(conversation.say(prompt, wanted)) for prompt in prompts], notices


def test_a_conversation_computes_nothing_twice(port: SimulatedPort, spec: CoreSpec, program: Program) -> None:
    notices: list[str] = []
    device = Device(port, notices.append)
    assert device.connect(config_hash=spec.hash) == Welcome(SHAPE.context, SHAPE.vocabulary)
    conversation = Conversation(device)
    for i, (prompt, expected) in enumerate(zip(PROMPTS, answers(spec, program, PROMPTS), strict=True)):
        assert list(conversation.say(prompt, WANTED)) == expected
        prefilled = len(prompt) + (i > 0)  # with the token that the answer before ended in
        assert device.read(Register.PASSES) == [-(-prefilled // CONFIG.chunk) + WANTED - 1]
    assert not notices
    assert conversation.room == SHAPE.context - sum(map(len, PROMPTS)) - 3 * WANTED


def test_an_answer_ends_at_the_stop_token(port: SimulatedPort, spec: CoreSpec, program: Program) -> None:
    expected = answers(spec, program, PROMPTS[:1])[0]
    device = Device(port, print)
    device.connect()
    assert list(Conversation(device).say(PROMPTS[0], WANTED, stop=expected[2])) == expected[: expected.index(expected[2]) + 1]


def test_a_full_context(port: SimulatedPort, spec: CoreSpec, program: Program) -> None:
    prompt = [1, 2, 3]
    wanted = SHAPE.context - len(prompt) + 1
    assert converse(port, [prompt], wanted) == (answers(spec, program, [prompt], wanted), [])


@pytest.mark.parametrize("skew", [0.98, 1.02])
def test_another_baud_rate_within_tolerance(spec: CoreSpec, program: Program, skew: float) -> None:
    with closing(SimulatedPort(spec, program, skew=skew)) as port:
        assert converse(port, PROMPTS[:1]) == (answers(spec, program, PROMPTS[:1]), [])


@pytest.mark.parametrize("way", ["there", "back"])
@pytest.mark.parametrize("kind", ["lost", "changed", "added"])
def test_bytes_lost_changed_and_added(port: SimulatedPort, spec: CoreSpec, program: Program, rng: np.random.Generator, way: str, kind: str) -> None:
    def damage(byte: int, number: int) -> bytes:
        if number % 53 != 52:
            return bytes([byte])
        return {"lost": b"", "changed": bytes([byte ^ 1 << int(rng.integers(8))]), "added": bytes([byte, int(rng.integers(256))])}[kind]

    found, notices = converse(Lossy(port, **{way: damage}))
    assert found == answers(spec, program, PROMPTS)
    beginnings = ("no reply to ", "the device reports ", "from the device came ", "the end of the run was lost on the line")
    assert notices and all(notice.startswith(beginnings) or notice.endswith("lost on the line: read again") for notice in notices)


def test_every_byte_of_a_request_may_be_lost(port: SimulatedPort) -> None:
    notices: list[str] = []
    device = Device(port, notices.append)
    device.connect()
    line = encode(Packet(PacketType.READ, 0x7D, bytes([Register.IDENTITY, 1])))
    for at in range(len(line)):
        port.write(line[:at] + line[at + 1 :])
        assert device.read(Register.IDENTITY, 2) == [IDENTITY, VERSION], at
    assert f"the device reports {Fault.LENGTH.meaning}" in notices


def test_garbage_between_prompts(port: SimulatedPort, spec: CoreSpec, program: Program, rng: np.random.Generator) -> None:
    notices: list[str] = []
    device = Device(port, notices.append)
    port.write(rng.bytes(300))
    device.connect()
    conversation = Conversation(device)
    for prompt, expected in zip(PROMPTS, answers(spec, program, PROMPTS), strict=True):
        port.write(rng.bytes(300))
        assert list(conversation.say(prompt, WANTED)) == expected
    assert any(notice.startswith("the device reports a packet of the wrong length") for notice in notices)


def test_a_break_on_the_line(port: SimulatedPort, spec: CoreSpec, program: Program) -> None:
    notices: list[str] = []
    device = Device(port, notices.append)
    device.connect()
    port.send_break()
    assert list(Conversation(device).say(PROMPTS[0], WANTED)) == answers(spec, program, PROMPTS[:1])[0]
    assert f"the device reports {Fault.LINE.meaning}" in notices


def test_half_a_request_is_given_up(port: SimulatedPort) -> None:
    decoder = Decoder()
    port.write(encode(Packet(PacketType.HELLO, 1))[:4])
    found = []
    while data := port.read(1.1 * PATIENCE_BYTES * port.byte_s):
        found += decoder.feed(data)
    assert found[1:] == [Packet(PacketType.ERROR, 0, bytes([Fault.TIMEOUT]))]  # before it: the event of a device that has been switched on
    port.write(encode(Packet(PacketType.HELLO, 1)))
    while data := port.read(64 * port.byte_s):
        found += decoder.feed(data)
    assert found[2] == Packet(PacketType.WELCOME, 1, BridgeModel(context=SHAPE.context, vocabulary=SHAPE.vocabulary, core=None).welcome)  # type: ignore[arg-type]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_the_reset_button_in_the_middle_of_an_answer(port: SimulatedPort, spec: CoreSpec, program: Program, after: int) -> None:
    notices: list[str] = []
    device = Device(port, notices.append)
    device.connect()
    conversation = Conversation(device)
    expected = answers(spec, program, PROMPTS)
    assert list(conversation.say(PROMPTS[0], WANTED)) == expected[0]
    found = []
    for token in conversation.say(PROMPTS[1], WANTED):
        found.append(token)
        if len(found) == after + 1:
            port.press_reset()
    assert found == expected[1]
    assert notices == ["the device was reset: what was said so far is computed again"]
    assert list(conversation.say(PROMPTS[2], WANTED)) == expected[2]


class Pressed:
    """A port whose reset button is pressed once more when the host, after a reset, asks what the device is."""

    def __init__(self, port: SimulatedPort) -> None:
        self.byte_s, self.latency_s, self.armed = port.byte_s, port.latency_s, False
        self._port, self.read, self.close = port, port.read, port.close

    def write(self, data: bytes) -> None:
        self._port.write(data)
        if self.armed and any(isinstance(one, Packet) and one.type == PacketType.READ for one in Decoder().feed(data)):
            self.armed = False
            self._port.press_reset()


def test_a_reset_while_the_host_connects_again(port: SimulatedPort, spec: CoreSpec, program: Program) -> None:
    notices: list[str] = []
    line = Pressed(port)
    device = Device(line, notices.append)
    device.connect()
    conversation, found, expected = Conversation(device), [], answers(spec, program, PROMPTS[:2])
    for token in conversation.say(PROMPTS[0], WANTED):
        found.append(token)
        if len(found) == 2:
            line.armed = True
            port.press_reset()
    assert found == expected[0] and not line.armed
    assert notices.count("the device was reset: what was said so far is computed again") == 2
    assert list(conversation.say(PROMPTS[1], WANTED)) == expected[1]


def test_another_host_in_the_middle_of_an_answer(port: SimulatedPort, spec: CoreSpec, program: Program) -> None:
    first = Device(port, print)
    first.connect()
    next(Conversation(first).say(PROMPTS[0], 20))
    assert converse(port) == (answers(spec, program, PROMPTS), [])


def test_an_answer_that_is_broken_off(port: SimulatedPort, spec: CoreSpec, program: Program) -> None:
    device = Device(port, print)
    device.connect()
    conversation = Conversation(device)
    with closing(conversation.say(PROMPTS[0], 20)) as answer:
        next(answer)
    assert device.read(Register.STATUS)[0] & 1 == 0
    written = conversation.ids[len(PROMPTS[0]) :]
    assert 1 <= len(written) < 20
    first, second = answers(spec, program, PROMPTS[:1], len(written))[0], Executor(spec, program)
    assert written == first
    list(second.generate(PROMPTS[0], len(written)))
    expected = [done.token for done in second.generate([written[-1], *PROMPTS[1]], WANTED, start=len(PROMPTS[0]) + len(written) - 1) if done.token is not None]
    assert list(conversation.say(PROMPTS[1], WANTED)) == expected


def test_a_prompt_that_is_too_long(port: SimulatedPort, spec: CoreSpec, program: Program) -> None:
    device = Device(port, print)
    device.connect()
    conversation = Conversation(device)
    with pytest.raises(
        ModelError, match="prompt of 38 tokens and 5 more must fit: 40 of 40 tokens of context are left; shorten it, ask for fewer, or begin anew"
    ):
        list(conversation.say([1] * 38, 5))
    with pytest.raises(ModelError, match="prompt ids must be in 0 to 26, not 27"):
        list(conversation.say([27], 5))
    with pytest.raises(ModelError, match="at least one token"):
        list(conversation.say([], 5))
    with pytest.raises(ModelError, match="tokens must be at least 1, not 0"):
        list(conversation.say([1], 0))
    # The device does not rely on the host.
    with pytest.raises(RefusedError, match="a prompt, a position or a token id outside of what the core has"):
        device.start([1] * 8, 5, position=33)
    with pytest.raises(RefusedError, match="outside of what the core has"):
        device.write(Register.TOKEN, [27])
    assert list(conversation.say(PROMPTS[0], WANTED)) == answers(spec, program, PROMPTS[:1])[0]


def test_a_running_core_takes_no_prompt(port: SimulatedPort) -> None:
    device = Device(port, print)
    device.connect()
    device.start([1, 2], 30)
    with pytest.raises(RefusedError, match="a running core does not take"):
        device.start([1], 1)
    assert len(list(device.tokens(2))) == 30


def test_a_silent_line_and_a_wrong_core(port: SimulatedPort, spec: CoreSpec) -> None:
    with pytest.raises(ToolError, match="did not answer 5 times: is it powered, loaded and set to this baud rate"):
        Device(Lossy(port, there=lambda byte, number: b""), lambda text: None).connect()
    with pytest.raises(LutraError, match=r"the device holds another core: its hash must be 0{16}, not "):
        Device(port, print).connect(config_hash=0)
    with pytest.raises(LutraError, match="the device speaks protocol 9, must be 1"):
        Welcome.of(bytes([9, 0, 0, 0, 0, 0]))


def test_through_a_terminal_of_the_system(port: SimulatedPort, spec: CoreSpec, program: Program) -> None:
    """The host's pyserial at one end of a pseudo-terminal, the simulated device at the other."""
    master, slave = os.openpty()
    finished = threading.Event()

    def device() -> None:
        while not finished.is_set():
            if select.select([master], [], [], 0)[0]:
                port.write(os.read(master, 4096))
            if data := port.read(1e-5):
                os.write(master, data)

    thread = threading.Thread(target=device)
    thread.start()
    try:
        with closing(SerialPort(os.ttyname(slave))) as line:
            line.latency_s = 5.0  # a busy machine simulates slowly
            assert converse(line, PROMPTS[:2])[0] == answers(spec, program, PROMPTS[:2])  # type: ignore[arg-type]
    finally:
        finished.set()
        thread.join()
        os.close(master)
        os.close(slave)
    with pytest.raises(ToolError, match=r"/dev/none: cannot be opened as a serial port .*; ports of this machine: "):
        SerialPort("/dev/none")


def test_the_command(run: Path, spec: CoreSpec, program: Program, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["cadaei", "bf"]
    expected = answers(spec, program, [[ALPHABET.index(c) for c in text] for text in texts], 4)
    command = ["talk", "--port", f"sim:{run}", "--tokens", "4"]
    with pytest.raises(SystemExit) as caught:
        main([*command, "--prompt", texts[0], "--prompt", texts[1], "--json"])
    assert caught.value.code == 0
    turns = json.loads(capsys.readouterr().out)["turns"]
    assert [turn["tokens"] for turn in turns] == expected
    assert [turn["text"] for turn in turns] == ["".join(ALPHABET[token] for token in tokens) for tokens in expected]
    # What is typed: a line that does not fit ends its turn, not the conversation.
    lines = iter(["cadaei", "x" * 60, ""])
    monkeypatch.setattr("sys.stdin.readline", lambda: next(lines))
    with pytest.raises(SystemExit) as caught:
        main(command)
    out, err = capsys.readouterr()
    assert caught.value.code == 0 and out.startswith("".join(ALPHABET[token] for token in expected[0]))
    assert "link: prompt of 60 tokens and 4 more must fit: 30 of 40 tokens of context are left" in err
    for given, message in (
        (
            ["--port", "/dev/none"],
            "port /dev/none must be given a run with --run: the one whose bitstream the board holds; or talk to a simulation",
        ),
        (["--port", f"sim:{run}", "--run", str(run)], "must be given no run: it is the simulation of its run's core and line"),
        (["--port", f"sim:{run}", "--baud", "9600"], "must be given no baud rate"),
        (["--port", "/dev/none", "--run", str(run), "--baud", "nan"], "baud must be at least 1, not nan; that of the boards' bitstreams: 1,000,000"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["talk", *given, "--prompt", "a"])
        assert caught.value.code == 2 and message in capsys.readouterr().err.replace("\n", " ")
