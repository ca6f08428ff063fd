# SPDX-License-Identifier: Apache-2.0
"""Loads a bitstream and a model on a board with PYNQ, and answers a prompt: python3 lutra_host.py lutra.bit memory.bin --ids 1,2,3 --tokens 32"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pynq
from lutra_driver import Accelerator, DriverError
from lutra_registers import DRAFT_LANES

MODEL = Path(__file__).parent / "model.json"
CHUNK_BEATS = 1 << 16
"""Beats that are copied at a time: the image may be larger than what memory is left."""


def load(image, model):
    """Buffers with the parts of the memory image, one per port: 16 bytes of every beat each.

    Parameters
    ----------
    image : path of memory.bin. model : contents of model.json.
    """
    ports, beats, width = model["ports"], model["beats"], model["port_bytes"]
    size = Path(image).stat().st_size
    if size != ports * beats * width:
        raise SystemExit(f"{image}: must have {ports * beats * width} bytes, not {size}: it is that of another run")
    whole = np.memmap(image, np.uint8, "r", shape=(beats, ports, width))
    buffers = [pynq.allocate(shape=(beats, width), dtype=np.uint8) for _ in range(ports)]
    for port, buffer in enumerate(buffers):
        for first in range(0, beats, CHUNK_BEATS):
            buffer[first : first + CHUNK_BEATS] = whole[first : first + CHUNK_BEATS, port]
        buffer.flush()  # the ports do not look into the processor's caches
    return buffers


def open_core(bitstream, model):
    """The driver of the core in a bitstream, which is loaded."""
    overlay = pynq.Overlay(str(bitstream))
    about = overlay.ip_dict["core"]
    return Accelerator(pynq.MMIO(about["phys_addr"], about["addr_range"]))


def encode(arguments, model):
    """(ids of the prompt, function from an id to text)."""
    if arguments.tokenizer is None:
        if not arguments.ids:
            raise SystemExit("--ids, or --tokenizer and --prompt, must be given")
        ids, text = [int(part) for part in arguments.ids.split(",")], lambda token: f"{token} "
    else:
        from tokenizers import Tokenizer

        words = Tokenizer.from_file(str(arguments.tokenizer))
        ids, text = words.encode(arguments.prompt).ids, lambda token: words.decode([token])
    wrong = [token for token in ids if not 0 <= token < model["vocabulary"]]
    if not ids or wrong or len(ids) > model["context"]:
        what = f"ids must be below {model['vocabulary']}, not {wrong[0]}" if wrong else f"there must be 1 to {model['context']} tokens, not {len(ids)}"
        raise SystemExit(f"prompt: {what}")
    return ids, text


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bitstream", type=Path, help="lutra.bit; lutra.hwh must be beside it")
    parser.add_argument("image", type=Path, help="program/memory.bin of the run")
    parser.add_argument("--ids", help="token ids of the prompt, with commas")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json")
    parser.add_argument("--prompt", default="", help="text of the prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to write, at most")
    parser.add_argument("--stop", type=int, help="token that ends the text")
    parser.add_argument("--drafts", type=int, default=0, help="drafted tokens that a pass verifies, at most; the text stays the same")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.drafts < DRAFT_LANES:
        raise SystemExit(f"--drafts must be 0 to {DRAFT_LANES - 1} on this core, not {arguments.drafts}")
    model = json.loads(MODEL.read_text())
    ids, text = encode(arguments, model)
    core = open_core(arguments.bitstream, model)
    core.stop()
    buffers = load(arguments.image, model)
    try:
        core.start([buffer.physical_address for buffer in buffers], int(model["config_hash"], 16))
        begin, written = time.monotonic(), []
        for token in core.generate(ids, arguments.tokens, stop=arguments.stop, drafts=arguments.drafts):
            written.append(token)
            print(text(token), end="", flush=True)
        seconds = time.monotonic() - begin
        print(f"\n{len(written)} tokens in {seconds:.3f} s; core: {core.cycles / model['clock_hz']:.6f} s", file=sys.stderr)
    except DriverError as error:
        raise SystemExit(f"lutra: {error}") from None
    finally:
        core.stop()
        for buffer in buffers:
            buffer.freebuffer()
    return written


if __name__ == "__main__":
    main()
