# SPDX-License-Identifier: Apache-2.0
"""The examples need torch, which the tests do without: what they say where it is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.smoke
@pytest.mark.parametrize("arguments", [("train_tiny_lm.py", "text.txt", "-o", "model"), ("compare_with_torch.py", "text.txt")])
def test_torch_missing_is_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")  # found before an installed one
    command = [sys.executable, str(EXAMPLES / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "" and sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["torch.py"]
    assert done.stderr.startswith("error: torch is not installed") and "pip install --editable '.[train]'" in done.stderr and done.stderr.count("\n") == 1
