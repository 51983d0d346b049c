"""Two processes do what one does: the same steps, files and answers; and end together."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.data_loader import SeedableRandomSampler
from parallel_worker import train
from refusals import refused
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from kava.backbones.loading import load_tokenizer
from kava.backbones.tiny import tiny_backbone
from kava.data import load_examples
from kava.data.tasks import load_task
from kava.evaluation.score import score_run
from kava.reasoning.batching import Encoder
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.recipe.schema import Train
from kava.runs.folder import read_metrics, read_result
from kava.system import distributed
from kava.training.arguments import rows_at_once
from kava.training.sampler import EpochOrder

WORKER = Path(__file__).with_name("parallel_worker.py")
TIMED = {"tokens_per_second", "seconds_per_step"}

KAVA = {
    "method": "kava", "num_latents": 4, "num_iterations": 1, "lora": {"r": 4, "dropout": 0.3},
    "codi": {"weight": 1}, "kv": {"weight": 1},
    # 26 rows: the last of an epoch's four steps has two, and a process without any
    "data": {
        "train": "synthetic", "train_rows": 26, "validation": "synthetic", "validation_rows": 7,
    },
    "train": {
        "steps": 10, "batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-3,
        "log_every": 1, "save_every": 3,
    },
    "eval": {"max_new_tokens": 4, "batch_size": 2},
}  # fmt: skip
FIVE = {**KAVA["train"], "steps": 5, "save_every": None}
WHOLE = {"adapter": "full", "train": {**FIVE, "micro_batch_size": None}}
UNWEIGHTED = {"codi": {"weight": 0}, "kv": {"weight": 0}}
#: Where the recipe's micro-batch is the whole batch, its std is too, and so are its draws.
RECIPES = {
    "lora": {},
    "full": WHOLE,
    "coconut": {
        "method": "coconut", **UNWEIGHTED, **WHOLE,
        "method_options": {
            "max_stage": 2, "epochs_per_stage": 0.25, "latents_per_stage": 2, "uniform_prob": 0.4,
        },
    },
    "icot": {
        "method": "icot", **UNWEIGHTED, **WHOLE,
        "method_options": {"tokens_per_epoch": 100, "smoothing": 0.3},
    },
    "lotus": {
        "method": "lotus", "adapter": "full", "num_latents": 12, "codi": {"weight": 0},
        "latent_readout": {"weight": 0.1, "width": 4}, "kv": {"weight": 0},
        "method_options": {"epochs_per_stage": 0.25}, "train": FIVE,
    },
    # the optimiser's state matters where steps are large
    "sharded": {
        "adapter": "full",
        "train": {**KAVA["train"], "learning_rate": 1e-2, "gradient_checkpointing": True},
    },
    "half": {
        "adapter": "full",
        "train": {**FIVE, "steps": 2, "learning_rate": 1e-4, "precision": "bf16"},
    },
    "uneven": {"train": {**KAVA["train"], "micro_batch_size": 8}},
}  # fmt: skip

SAME = ("lora", "full", "coconut", "icot", "lotus")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Recipe files by name, on one tiny backbone."""
    folder = tmp_path_factory.mktemp("recipes")
    tiny_backbone("llama", folder / "backbone")
    shutil.copytree(folder / "backbone", folder / "tied")
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(folder / "backbone", tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder / "tied")  # tied as Llama-3.2 is
    for name, changes in RECIPES.items():
        below = "tied" if name == "sharded" else "backbone"
        tree = {**KAVA, "backbone": str(folder / below), **changes}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return {name: str(folder / f"{name}.yaml") for name in RECIPES}


def launch(*words, launcher=("torch.distributed.run", "--nproc-per-node", "2"), **options):
    """Two processes on this machine, which meet at a port of their own.

    torchrun binds the port itself. One that is chosen here and bound later may be taken meanwhile
    by another test, so it is only chosen for accelerate, which has to be told one.
    """
    env = {
        **os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
        "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "error::FutureWarning:kava",
    }  # fmt: skip
    if "torch" in launcher[0]:
        place = ("--standalone",)
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = ("--main_process_port", str(free.getsockname()[1]))
    command = [sys.executable, "-m", *launcher, *place, *map(str, words)]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def together(folder: Path, jobs: list[dict]) -> list[str | list[str]]:
    """Two processes do the jobs; what came of each, the same on both: of an error three words."""
    folder.mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    process = launch(WORKER, folder)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[:6000]
    first, second = (json.loads((folder / f"outcomes-{n}.json").read_text()) for n in (0, 1))
    assert first == second
    return first


def logged(run: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in TIMED} for r in read_metrics(run)]


def assert_same_run(found: Path, expected: Path):
    """Terms, gradient norms and validation of every step, and the weights that came out."""
    ours, theirs = logged(found), logged(expected)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7)
    files = [sorted(p.relative_to(r) for p in r.rglob("*")) for r in (found, expected)]
    assert files[0] == files[1]
    for file in files[0]:
        if file.suffix == ".safetensors":
            weights = [load_file(run / file) for run in (found, expected)]
            assert weights[0].keys() == weights[1].keys()
            for name, weight in weights[1].items():
                torch.testing.assert_close(weights[0][name], weight, rtol=1e-4, atol=2e-5)


@pytest.fixture(scope="module")
def alone(recipes, tmp_path_factory):
    """The same trainings by one process; `cut` has a checkpoint after six of ten steps."""
    folder = tmp_path_factory.mktemp("alone")
    for name in (*SAME, "sharded", "half"):
        train(recipes[name], folder / name)
    return folder


@pytest.fixture(scope="module")
def ddp(recipes, lonely, tmp_path_factory):
    """(folder of runs, outcomes by run): DDP."""
    folder = tmp_path_factory.mktemp("ddp")
    train(recipes["lora"], folder / "resumed", stop_after=7)
    lora = recipes["lora"]
    jobs = {name: {"recipe": recipes[name], "run": str(folder / name)} for name in SAME}
    jobs |= {
        "resumed": {"recipe": lora, "run": str(folder / "resumed"), "resume": True},
        "cut": {"recipe": lora, "run": str(folder / "cut"), "stop_after": 7},
        "poisoned": {
            "recipe": lora, "run": str(folder / "cut"), "resume": True, "poison": lonely[0],
        },
        "full disk": {"recipe": lora, "run": str(folder / "full disk"), "full_disk_at": 4},
        "uneven": {"recipe": recipes["uneven"], "run": str(folder / "uneven")},
        # the first of two micro-batches of the fourth step
        "asked": {"recipe": lora, "run": str(folder / "asked"), "asked": [1, 7]},
        "gone on": {"recipe": lora, "run": str(folder / "asked"), "resume": True},
        "asked in its evaluation": {"recipe": lora, "scored": str(folder / "asked"), "asked": 1},
        "evaluated anew": {"recipe": lora, "scored": str(folder / "asked")},
    }  # fmt: skip
    return folder, dict(zip(jobs, together(folder, list(jobs.values())), strict=True))


@pytest.fixture(scope="module")
def lonely(recipes):
    """A token that one training row has and no other, and that row's number and id."""
    recipe = load_resolved(recipes["full"])
    encoder = Encoder(load_tokenizer(Path(recipe.backbone)), recipe.drop_last_step)
    rows = encoder.rows(load_examples("synthetic", "train", limit=26))
    seen = [{*row.question, *row.steps, *row.answer} for row in rows]
    for number, row in enumerate(rows):
        others = set().union(*(tokens for n, tokens in enumerate(seen) if n != number))
        if alone := set(row.question) - others:
            return min(alone), number, row.id
    raise AssertionError("every token is in two rows")


@pytest.mark.processes
@pytest.mark.parametrize("name", SAME)
def test_the_trajectory_is_that_of_one_process(name, ddp, alone):
    folder, outcomes = ddp
    assert outcomes[name] == ""
    assert_same_run(folder / name, alone / name)
    result = read_result(folder / name)
    assert result["processes"] == 2 and result["rows"] == 26


@pytest.mark.processes
def test_one_processs_checkpoint_is_resumed_by_two(ddp, alone):
    folder, outcomes = ddp
    assert outcomes["resumed"] == ""
    assert read_result(folder / "resumed")["resumed_from"] == 6
    assert_same_run(folder / "resumed", alone / "lora")


@pytest.mark.processes
def test_a_loss_that_is_not_finite_is_told_with_its_step_terms_and_rows(ddp, lonely):
    folder, outcomes = ddp
    order = EpochOrder(26, 42, 4)

    def numbers(step):
        order.set_epoch((step - 1) // 4)
        return list(order)[(step - 1) % 4 * 8 :][:8]

    bad = next(step for step in range(7, 11) if lonely[1] in numbers(step))
    code, _, told = outcomes["poisoned"]
    assert code == "training.not-finite"
    step, _, terms = told.partition(" is not finite")[0].partition(": ")
    assert step == f"step {bad}"
    assert set(terms.split(", ")) == {"student_ce", "teacher_ce", "codi", "kv"}
    named = told.partition("rows ")[2].split(";")[0].split(", ")
    assert lonely[2] in named and len(named) == 2  # one micro-batch of one process
    assert [r["step"] for r in logged(folder / "cut")] == list(range(1, bad))


@pytest.mark.processes
def test_two_processes_checkpoint_is_resumed_by_one_also_after_such_a_loss(ddp, alone, recipes):
    folder, _ = ddp
    run = folder / "cut"
    assert {f.name for f in (run / "checkpoints").iterdir()} == {"checkpoint-3", "checkpoint-6"}
    train(recipes["lora"], run, resume=True)
    assert_same_run(run, alone / "lora")


@pytest.mark.processes
def test_a_full_disk_ends_both_and_leaves_the_checkpoint_before(ddp, recipes, alone):
    folder, outcomes = ddp
    run = folder / "full disk"
    code, place, told = outcomes["full disk"]
    assert (code, Path(place).name) == ("system.not-written", "checkpoint-6")
    assert "File too large" in told  # in the system's words
    assert [f.name for f in (run / "checkpoints").iterdir()] == ["checkpoint-3"]
    train(recipes["lora"], run, resume=True)
    assert_same_run(run, alone / "lora")


@pytest.mark.processes
def test_where_one_is_asked_to_stop_both_do_after_the_same_step(ddp):
    folder, outcomes = ddp
    # of both, as `together` compares them
    assert (outcomes["asked"], outcomes["gone on"]) == ("SIGUSR2", "")
    run = folder / "asked"
    assert read_result(run)["resumed_from"] == 4
    assert logged(run) == logged(folder / "lora")
    for file in (folder / "lora/checkpoint").rglob("*.safetensors"):
        assert file.read_bytes() == (run / file.relative_to(folder / "lora")).read_bytes()


@pytest.mark.processes
def test_in_an_evaluation_both_stop_after_the_same_turn(ddp):
    folder, outcomes = ddp
    assert outcomes["asked in its evaluation"] == "SIGUSR2 after 1; predictions: False"
    assert outcomes["evaluated anew"] == "scored"
    assert (folder / "asked/predictions/synthetic.jsonl").is_file()
    assert not (folder / "asked.lock").exists()


# -- as commands ---------------------------------------------------------------------------------


def workers(process: subprocess.Popen) -> dict[int, int]:
    """Pids of a launcher's processes by their number."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        try:
            names = Path(f"/proc/{child}/environ").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # a short-lived helper of the launcher has just ended
        found.update({int(n[5:]): int(child) for n in names if n.startswith("RANK=")})
    return found


@pytest.mark.processes
def test_when_one_process_is_killed_the_other_ends_and_resume_goes_on(recipes, alone, tmp_path):
    process = launch("-m", "kava", "train", recipes["lora"], "-o", tmp_path / "run")
    saved = tmp_path / "run/checkpoints/checkpoint-3/trainer_state.json"
    deadline = time.monotonic() + 120
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(workers(process)[1], signal.SIGKILL)
    begin = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - begin < 40
    assert "SIGKILL" in err or "Signal 9" in err  # the launcher says which process, and why
    assert not (tmp_path / "run/result.json").exists()
    train(recipes["lora"], tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", alone / "lora")


@pytest.mark.processes
def test_accelerate_launches_a_training_as_torchrun_does(recipes, alone, tmp_path):
    process = launch(
        "-m", "kava", "train", recipes["full"], "-o", tmp_path / "run",
        launcher=("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    )  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    assert out.count("trained 5 steps") == 1
    assert_same_run(tmp_path / "run", alone / "full")
    assert read_result(tmp_path / "run")["processes"] == 2


#: What `accelerate launch` sets always, and what it sets for several processes.
ALWAYS, SEVERAL = {"ACCELERATE_MIXED_PRECISION": "no"}, {"MASTER_PORT": "29500"}
#: Starts a process with more in its environment, that one the next; the last checks.
NESTED = """
import json, os, subprocess, sys
layers = json.loads(sys.argv[1])
if layers:
    words = [sys.executable, "-c", sys.argv[2], json.dumps(layers[1:]), sys.argv[2]]
    sys.exit(subprocess.run(words, env={**os.environ, **layers[0]}).returncode)
from kava.errors import KavaError
from kava.system import distributed
try:
    distributed.check_command(["ask", "x"])
    distributed.check_command(["train", "x"])
except KavaError as error:
    sys.exit(f"{error.code} {error.key}")
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("layers", "turned_away"),
    [
        ([ALWAYS], False),
        ([ALWAYS | SEVERAL], True),
        ([ALWAYS | SEVERAL, {}], True),  # a script of the user's between
        ([ALWAYS | SEVERAL | {"LOCAL_RANK": "0"}], False),  # --multi_gpu
        ([SEVERAL, ALWAYS], False),  # exported by hand
        ([SEVERAL, ALWAYS | {"MASTER_PORT": "29501"}], True),
    ],
)
def test_what_accelerate_starts_as_one_of_several_is_refused(layers, turned_away):
    words = [sys.executable, "-c", NESTED, json.dumps(layers), NESTED]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == int(turned_away), done.stderr
    wanted = ["system.one-started-of-several MASTER_PORT"] if turned_away else []
    assert done.stderr.splitlines() == wanted


@pytest.mark.processes
def test_an_evaluation_by_two_is_that_of_one(recipes, alone, tmp_path):
    config = tmp_path / "accelerate.yaml"
    config.write_text("{distributed_type: MULTI_GPU, num_machines: 1, num_processes: 2}\n")
    words = ("eval", alone / "full", "--task", "synthetic", "--limit", "7", "--batch-size", "2")
    two = launch(
        "-m", "kava", *words, "-o", tmp_path / "two",
        launcher=("accelerate.commands.launch", "--config_file", str(config)),
    )  # fmt: skip
    while len(started := workers(two)) < 2 and two.poll() is None:
        time.sleep(0.02)
    out, err = two.communicate(timeout=120)
    assert set(started) == {0, 1}
    assert two.returncode == 0, err[-3000:]
    assert out.count("predictions and scores in") == 1
    score_run(
        Reasoner.from_pretrained(alone / "full"),
        load_task("synthetic", limit=7),
        tmp_path / "one",
        batch_size=2,
    )
    files = [tmp_path / name / "predictions/synthetic.jsonl" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    scores = [read_result(tmp_path / name)["scores"]["synthetic"] for name in ("one", "two")]
    measured = {"ms_per_question", "ms_per_question_in_batch", "tokens_per_second", "peak_memory"}
    measured |= {"command", "time"}
    assert scores[0].keys() == scores[1].keys()
    for key in scores[0].keys() - measured:
        assert scores[0][key] == scores[1][key], key


@pytest.mark.processes
def test_of_several_processes_none_waits_for_python_to_take_itself_apart():
    """A thread of torch may abort a process there; what is registered for the end still runs."""
    code = (
        "import atexit; from kava.system import distributed; atexit.register(print, 'sent')\n"
        "class Late:\n def __del__(self): print('late')\n"
        "late = Late(); distributed.exit_process(0)"
    )
    for number, told in (("2", "sent"), ("1", "sent late")):
        env = {**os.environ, "WORLD_SIZE": number, "RANK": "0", "LOCAL_RANK": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == told.split()


@pytest.mark.processes
def test_bad_input_is_told_once_and_ends_both(recipes, tmp_path):
    process = launch("-m", "kava", "train", recipes["lora"], "train.stps=8", "-o", tmp_path / "run")
    _, err = process.communicate(timeout=120)
    told = [line for line in err.splitlines() if line.startswith("kava:")]
    assert len(told) == 1 and "'train.stps'" in told[0] and "'steps'" in told[0]
    assert err.count("exitcode  : 2") == 2
    assert "kava/__main__" not in err and not (tmp_path / "run").exists()


@pytest.mark.processes
def test_a_batch_that_cannot_be_held_is_refused_by_both(ddp):
    folder, outcomes = ddp
    code, key, told = outcomes["uneven"]
    assert (code, key) == ("training.uneven-processes", "train.batch_size")
    rows, at_once, processes, *fitting = map(int, re.findall(r"\d+", told))
    assert (rows, at_once, processes, fitting) == (8, 8, 2, [1, 1, 2, 4])
    assert not (folder / "uneven").exists()


@pytest.mark.parametrize(
    "words,command",
    [(["ask", "x"], "ask"), (["sweep", "x"], "sweep"), (["train", "x"], None), ([], None)],
)
def test_commands_that_would_do_everything_twice_are_refused(words, command, monkeypatch):
    distributed.check_command(words)  # one process may
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    if command is None:
        distributed.check_command(words)
        return
    with refused("system.one-process-only", command) as told:
        distributed.check_command(words)
    assert " 2;" in str(told.value)


@pytest.mark.parametrize(
    "wanted,code",
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "system.no-deepspeed"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "system.first-fsdp"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "system.fsdp-on-cpu"),
    ],
)
def test_splitting_that_one_would_not_get_is_refused(wanted, code, monkeypatch):
    distributed.check_sharding()
    monkeypatch.setattr(distributed, "device", lambda: "cpu")
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    with refused(code):
        distributed.check_sharding()


# -- laws, without a launcher --------------------------------------------------------------------


@pytest.mark.parametrize("parts,processes", [(7, 2), (6, 3), (1, 4), (0, 2), (5, 1)])
def test_all_take_as_many_turns_and_each_part_is_taken_once(parts, processes, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    shares = []
    for index in range(processes):
        monkeypatch.setenv("RANK", str(index))
        shares.append(list(distributed.split_over_ranks(range(parts))))
    assert {len(share) for share in shares} == {-(-parts // processes)}
    taken = [part for share in shares for part in share if part is not None]
    assert sorted(taken) == list(range(parts))


@pytest.mark.parametrize(
    "batch,micro,processes,rows",
    [(128, 32, 1, 32), (128, 32, 4, 32), (128, None, 8, 16), (6, 3, 2, 3), (6, None, 1, 6)],
)
def test_the_batch_is_held(batch, micro, processes, rows):
    settings = Train(steps=1, learning_rate=1, batch_size=batch, micro_batch_size=micro)
    assert rows_at_once(settings, processes) == rows
    assert batch % (rows * processes) == 0


@pytest.mark.parametrize(
    "batch,micro,processes,fitting",
    [
        (128, 32, 3, "1, 2, 4"),
        (12, None, 8, "1, 2, 3, 4, 6, 12"),
        (8, 4, 4, "1, 2; or train.micro_batch_size 1 or 2; or train.micro_batch_size=null"),
        (8, 2, 8, "1, 2, 4; or train.micro_batch_size 1; or train.micro_batch_size=null"),
    ],
)
def test_or_refused_with_what_fits(batch, micro, processes, fitting):
    settings = Train(steps=1, learning_rate=1, batch_size=batch, micro_batch_size=micro)
    with refused("training.uneven-processes", "train.batch_size") as told:
        rows_at_once(settings, processes)
    assert str(told.value).endswith(f": {fitting}")


@pytest.mark.parametrize("rows,together", [(26, 4), (8, 4), (3, 8), (1, 1)])
def test_each_row_comes_once_an_epoch_in_the_order_of_accelerates_sampler(rows, together):
    theirs = SeedableRandomSampler(range(rows), data_seed=7)
    ours = EpochOrder(rows, 7, together)
    for epoch in range(3):
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        numbers = list(ours)
        assert numbers[:rows] == list(theirs)
        assert len(numbers) == len(ours) == -(-rows // together) * together
        assert all(number >= rows for number in numbers[rows:])


# -- FSDP2 ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fsdp(recipes, tmp_path_factory):
    """(folder of runs, outcomes by run): FSDP2, each block and the rest split over two."""
    folder = tmp_path_factory.mktemp("fsdp")
    train(recipes["sharded"], folder / "resumed", stop_after=7)
    names = ("lora", "sharded", "half")
    jobs = [{"recipe": recipes[n], "run": str(folder / n)} for n in names]
    jobs += [
        {"recipe": recipes["sharded"], "run": str(folder / "resumed"), "resume": True},
        {"recipe": recipes["sharded"], "run": str(folder / "cut"), "stop_after": 7},
    ]
    return folder, together(folder, jobs)


@pytest.mark.processes
@pytest.mark.parametrize("name", ("lora", "sharded", "half", "resumed"))
def test_split_weights_give_the_same_trajectory_and_the_same_files(name, fsdp, alone):
    folder, outcomes = fsdp
    assert set(outcomes) == {""}
    assert_same_run(folder / name, alone / ("sharded" if name == "resumed" else name))


@pytest.mark.processes
def test_a_checkpoint_of_split_weights_is_resumed_by_one_process(fsdp, alone, recipes):
    folder, _ = fsdp
    train(recipes["sharded"], folder / "cut", resume=True)
    assert read_result(folder / "cut")["resumed_from"] == 6
    assert_same_run(folder / "cut", alone / "sharded")
