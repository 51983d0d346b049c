"""What a fresh clone needs: make targets, pinned versions, the paper's recipe, true documents."""

import hashlib
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import kava
from kava.evaluation._symbolic_worker import CPU_SECONDS, MEMORY
from kava.reasoning.evictions import EvictionInputs
from kava.reasoning.resolve import load_resolved
from kava.recipe import registry
from kava.recipe.load import MAX_BYTES, _Loader
from tools import plugin_tests, requirements

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "Makefile").exists(), reason="these files are part of a checkout only"
)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def pins(file="constraints.txt"):
    """Package name to pinned requirement."""
    lines = [line.strip() for line in read(file).splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len(found) == len({canonicalize_name(pin.name) for pin in found}), "a name twice"
    return {canonicalize_name(pin.name): pin for pin in found}


def project():
    return tomllib.loads(read("pyproject.toml"))["project"]


def dependencies(*extras):
    """Return the requirements of the package and of these extras, or of all if none is named."""
    known = project()["optional-dependencies"]
    lines = [line for extra in extras or known for line in known[extra]]
    return [Requirement(line) for line in [*project()["dependencies"], *lines]]


@pytest.mark.parametrize(
    "target",
    ["quickstart", "test", "test-real", "test-oldest", "test-extras", "docs", "clean"],
)
def test_makefile_has_target(target):
    assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE)


@pytest.mark.skipif(not shutil.which("make"), reason="no make on this machine")
@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_make_says_in_one_line_which_python_it_needs(tmp_path, python):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    words = ["make", "quickstart", f"PYTHON={python}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "kava needs Python 3.11 or later" in done.stdout + done.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_calls_make_test_and_the_shortened_quickstart():
    script = read(".ci/run")
    assert (
        re.search(r"\bmake test\b", script)
        and "make test-real" in script
        and "kava quickstart --smoke" in script
    )
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_the_plugin_for_vllm_was_tested_as_it_is():
    """If not, run `make test-vllm`, and commit the record that it writes."""
    record = json.loads(read("results/vllm_tests.json"))
    assert record["plugin_sha256"] == plugin_tests.digest()
    assert record["passed"] >= 50 and "make test-vllm" in read(".ci/run")


def test_the_build_backend_is_pinned():
    needed = tomllib.loads(read("pyproject.toml"))["build-system"]["requires"]
    assert needed and all(re.fullmatch(r"[\w-]+==[\d.]+", one) for one in needed)


def test_the_page_on_security_is_found_and_holds():
    text = read("SECURITY.md")
    assert "(SECURITY.md)" in read("README.md") and "(security.md)" in read("docs/index.md")
    assert len(read("README.md")) <= 8000
    assert f"{_Loader.most:,} values" in text and MAX_BYTES == 1_000_000 and "over 1 MB" in text
    assert f"{MEMORY >> 30} GiB" in text and CPU_SECONDS == 1 and "one second" in text
    serving = read("src/kava/cli/serving.py")
    variables = set(re.findall(r"KAVA_\w+", text))
    assert variables and all(f'envvar="{name}"' in serving for name in variables)
    for key in re.findall(r"`(?:data|train)\.(\w+)`", text):
        assert f"    {key}: " in read("src/kava/recipe/schema.py")


def hashed(file):
    """Package name to requirement and its hashes, of a file that `tools/requirements.py` wrote."""
    found = {}
    for whole in re.split(r"\n(?=[A-Za-z0-9])", read(file))[1:]:
        words, *hashes = re.split(r"\s*\\\s+--hash=", whole.strip())
        requirement = Requirement(words)
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonicalize_name(requirement.name)] = requirement, hashes
    return found


def test_the_tested_set_with_hashes_is_that_of_the_constraints():
    """Written anew by `python -m tools.requirements` when a version changes."""
    known, found = pins(), hashed(requirements.FILE)
    for name, (requirement, hashes) in found.items():
        assert requirement.specifier == known[name].specifier, name
        assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes), name
    needed = {canonicalize_name(one.name) for one in dependencies(*requirements.EXTRAS)}
    assert needed <= found.keys()
    libraries = hashed(requirements.CUDA)
    assert all(hashes for _, hashes in libraries.values()) and not libraries.keys() & found.keys()
    for file in (requirements.FILE, requirements.CUDA):
        assert "://" not in read(file)  # no index of anybody


def test_the_tests_run_on_the_set_with_hashes():
    text = read("Makefile")
    assert "--no-deps --require-hashes" in text and f"-r {requirements.FILE}" in text
    assert f"-r {requirements.CUDA}" in text


def test_what_uv_wrote_is_split_by_what_needs_it(tmp_path):
    wheel = tmp_path / "torch.whl"
    wheel.write_bytes(b"1")
    ours, cuda = requirements.split(
        "a==1 \\\n    --hash=sha256:0\nnvidia-x==2 \\\n    --hash=sha256:1\n"
    )
    assert ours == ["a==1 \\\n    --hash=sha256:0"] and cuda == [
        "nvidia-x==2 \\\n    --hash=sha256:1"
    ]
    added = requirements.with_wheels("torch==2", [wheel])
    assert added.endswith(hashlib.sha256(b"1").hexdigest())
    assert requirements.with_wheels("a==1", [wheel]) == "a==1"


def test_ci_needs_no_root_where_programs_are_there(tmp_path):
    """And says so where it can install nothing."""
    (function,) = re.findall(r"^from_the_system\(\).*?^}$", read(".ci/run"), re.M | re.S)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in {
        "id": "echo 1000",
        "sudo": "exit 1",
        "apt-get": "exit 7",
        "there": "",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)

    def run(program):
        script = (
            f"set -euo pipefail; work={tmp_path}\n{function}\nfrom_the_system a-package {program}"
        )
        environment = {"PATH": f"{tools}:/usr/bin:/bin"}
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("there") == ""
    assert "a-package is missing" in run("not-there") and "nor sudo" in run("not-there")
    (tools / "sudo").write_text('#!/bin/sh\n[ "$1" = -n ] && shift\nexec "$@"\n')
    assert "a-package was not installed" in run("not-there")


@pytest.mark.parametrize("needed", dependencies() if (ROOT / "pyproject.toml").exists() else ())
def test_dependency_is_pinned_within_its_range(needed):
    pin = pins()[canonicalize_name(needed.name)]
    (exact,) = pin.specifier
    assert exact.operator == "=="
    assert needed.specifier.contains(exact.version)


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds():
    lowest = pins("constraints-lowest.txt")
    for needed in dependencies("serve", "test"):
        (exact,) = lowest[canonicalize_name(needed.name)].specifier
        assert needed.specifier.contains(exact.version), needed
        if needed.name != "torch":
            (floor,) = (part for part in needed.specifier if part.operator in (">=", "=="))
            assert Version(floor.version) == Version(exact.version), needed


def test_make_tests_the_oldest_versions_with_files_that_exist():
    (names,) = re.findall(r"^OLDEST := ((?:.*\\\n)*.*)", read("Makefile"), re.MULTILINE)
    for name in names.replace("\\", "").split():
        assert (ROOT / "tests" / f"test_{name}.py").exists(), name


def test_the_package_knows_its_version():
    assert kava.__version__ == project()["version"]


def test_make_installs_the_pinned_torch():
    assert re.search(r"^torch==[\d.]+$", read("constraints.txt"), re.MULTILINE)
    assert "grep '^torch=='" in read("Makefile")


def test_paper_recipe_is_table_6():
    assert len(read("recipes/llama1b_aug/kava.yaml").splitlines()) <= 31
    recipe = load_resolved(ROOT / "recipes" / "llama1b_aug" / "kava.yaml", ["seed=123"])
    assert (recipe.method, recipe.backbone) == ("kava", "meta-llama/Llama-3.2-1B-Instruct")
    assert recipe.seed == 123
    assert recipe.adapter == "lora"
    lora = recipe.lora
    assert (lora.r, lora.alpha, lora.dropout) == (128, 32, 0.1)
    assert lora.targets == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (recipe.num_latents, recipe.num_iterations) == (24, 3)
    assert recipe.projection == "mlp_layernorm" and recipe.drop_last_step
    assert (recipe.codi.weight, recipe.codi.loss, recipe.codi.layerwise_std) == (10, "l1", True)
    kv = recipe.kv
    assert (kv.weight, kv.loss, kv.layerwise_std) == (1, "smooth_l1", True)
    assert (kv.eviction.name, kv.eviction.lam) == ("rkv", 0.1)


def test_paper_recipe_trains_as_table_6():
    recipe = load_resolved(ROOT / "recipes" / "llama1b_aug" / "kava.yaml")
    train = recipe.train
    assert (recipe.data.train, recipe.data.train_rows, recipe.seed) == ("gsm8k_aug", None, 42)
    assert (train.epochs, train.batch_size, train.precision) == (10, 128, "bf16")
    assert (train.learning_rate, train.weight_decay, train.clip) == (8e-4, 0.1, 2.0)
    assert (train.schedule, train.warmup) == ("cosine", 0.03)
    assert recipe.teacher_ce_weight == 1


def test_contributing_example_runs(monkeypatch):
    monkeypatch.setattr(registry, "_outside", {})
    (code,) = re.findall(r"```python\n(.*?)```", read("CONTRIBUTING.md"), re.DOTALL)
    space = {"__name__": "example"}
    exec(code, space)
    registry.register("evictions", "key_norm", space["IMPLEMENTATION"])
    eviction = registry.find("evictions", "key_norm")(lam=0.1)
    length = torch.tensor([3.0, 9.0, 1.0, 7.0, 8.0])
    keys = length[None, None, :, None].expand(1, 2, 5, 4)
    mask = torch.tensor([[True, True, True, True, False]])
    scored = EvictionInputs(keys, mask, None, torch.ones(1, 1, dtype=torch.bool))
    columns, filled = eviction.keep(scored, 2)
    assert columns.tolist() == [[[1, 3], [1, 3]]] and filled.all()


def test_contributing_names_files_that_exist():
    for name in re.findall(r"`(?:src/kava/)?((?:\w+/)+_\w+\.py)`", read("CONTRIBUTING.md")):
        assert (ROOT / "src" / "kava" / name).exists(), name


def test_citation_holds_the_four_papers():
    cited = yaml.safe_load(read("CITATION.cff"))
    assert cited["license"] == "Apache-2.0" and cited["type"] == "software"
    found = {paper["url"].rpartition("/")[2]: paper["authors"] for paper in cited["references"]}
    first = {number: authors[0]["family-names"] for number, authors in found.items()}
    assert first == {
        "2510.02312": "Kuzina",
        "2506.18582": "Wu",
        "2502.21074": "Shen",
        "2505.24133": "Cai",
    }


def test_licence_is_apache():
    text = read("LICENSE")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_no_file_names_a_folder_of_one_machine():
    words = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    pattern = re.compile(rb"(?<![\w.~-])/(?:work|root|home/\w+)/")
    files = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    guilty = [f.name for f in files if f.is_file() and pattern.search(f.read_bytes())]
    assert guilty == []
