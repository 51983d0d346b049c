"""Each attack of `benchmarks/hostile_files.py` is refused or held, and a test here holds it."""

import json
from pathlib import Path

import hostile_files
import pytest
from hostile_files import ATTACKS, FILE

from kava.errors import KavaError

SLOW = {name for name in ATTACKS if "score" in name or "parquet" in name or "pattern" in name}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_test_that_holds_an_attack_exists(name):
    file, _, test = ATTACKS[name][1].partition("::")
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    assert f"def {test}(" in text or f"\n{test} = " in text


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - SLOW))
def test_an_attack_is_refused_or_held(name, tmp_path):
    try:
        assert ATTACKS[name][0](tmp_path) is None
    except KavaError as error:
        assert error.code


def test_the_results_are_of_these_attacks():
    found = json.loads(FILE.read_text(encoding="utf-8"))
    assert found["attacks"].keys() == ATTACKS.keys() and found["wrong"] == []
    for one in found["attacks"].values():
        assert one["outcome"] in ("refused", "held") and one["seconds"] <= hostile_files.SECONDS
        assert one["mb"] <= hostile_files.MEGABYTES
