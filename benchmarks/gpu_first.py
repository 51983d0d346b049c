"""The first minutes on a GPU: does everything hold there, and how fast is it?

    python benchmarks/gpu_first.py -o OUT             # 8.5 minutes on a GPU
    python benchmarks/gpu_first.py -o OUT --tiny      # tiny shapes, on any machine
    python benchmarks/gpu_first.py --wheels           # what an image without network needs

One process, stages one after the other. Each stage has a time limit, and its result is added to
`OUT/gpu_first.json` as soon as it ends, also if it failed. `OUT/profile.txt` has the operations of
one step. Nothing else is written there. If a result is wrong, later times are still measured, but
`claims` is false: they say nothing. FLOPs and MFU are computed afterwards from `work`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

SECONDS = 510  # in all
ROOT = Path(__file__).resolve().parents[1]
#: Module and package of everything that is imported below.
NEEDED = {
    "pydantic": "pydantic", "yaml": "pyyaml", "rich": "rich", "transformers": "transformers",
    "peft": "peft", "accelerate": "accelerate", "datasets": "datasets",
    "safetensors": "safetensors", "math_verify": "math-verify", "fastapi": "fastapi",
    "httpx": "httpx",
}  # fmt: skip
#: Without these, only one stage lacks what it measures.
OPTIONAL = ("datasets", "math_verify", "fastapi", "httpx")


@dataclass
class Session:
    """The device, the sizes and the results so far.

    tiny: whether shapes are tiny, to test the script itself.
    seconds: limit of the whole script.
    patience: factor on the limits of the stages.
    waits: counts what made the host wait, if the device is not CUDA.
    """

    device: torch.device
    tiny: bool
    output: Path
    seconds: float = SECONDS
    patience: float = 1
    waits: Callable[[], int] | None = None
    begin: float = field(default_factory=time.perf_counter)
    told: dict[str, Any] = field(default_factory=lambda: {"claims": True, "stages": {}})

    @property
    def left(self) -> float:
        """Seconds until the whole script has to end."""
        return self.seconds - (time.perf_counter() - self.begin)

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ms(self, act: Callable[[], Any]) -> float:
        """Run something once; return its milliseconds."""
        self.wait()
        begin = time.perf_counter()
        act()
        self.wait()
        return round(1000 * (time.perf_counter() - begin), 3)

    def save(self) -> None:
        """Write all results, in place of those before."""
        new = self.output / "gpu_first.json.new"
        new.write_text(json.dumps(self.told, indent=1) + "\n", encoding="utf-8")
        new.replace(self.output / "gpu_first.json")


def wrong(found: Any) -> bool:
    """Whether a result contains `"right": false` anywhere."""
    if isinstance(found, dict):
        return found.get("right") is False or any(map(wrong, found.values()))
    return isinstance(found, list) and any(map(wrong, found))


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in the block after so many seconds."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(session: Session, stages: dict[str, tuple[float, Callable[..., None]]]) -> None:
    """Run each stage for at most its seconds; what it has found until then is kept."""
    session.output.mkdir(parents=True, exist_ok=True)
    for name, (seconds, stage) in stages.items():
        found: dict[str, Any] = {}
        begin = time.perf_counter()
        session.told["stages"][name] = found
        try:
            with at_most(min(seconds * session.patience, session.left)):
                stage(session, found)
        except Exception as error:  # the next stages are to run whatever happened in this one
            found["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
            found["where"] = traceback.format_exc().splitlines()[-12:]
            session.told["claims"] &= name not in CORRECTNESS
        session.told["claims"] &= not wrong(found)
        found["seconds"] = round(time.perf_counter() - begin, 1)
        session.save()
        state = found.get("failed", "wrong" if wrong(found) else "done")
        print(f"{name}: {state} ({found['seconds']} s)", flush=True)
        if session.device.type == "cuda":
            torch.cuda.empty_cache()


# -- 0 and 1: the machine and its attention ----------------------------------------


def versions(session: Session, found: dict[str, Any]) -> None:
    """Versions, the rate of matrix products, the attention kernel, and cuDNN's NaN."""
    found["python"] = sys.version.split()[0]
    found["packages"], found["missing"] = packages()
    found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    if session.device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(session.device)
        found["memory"] = torch.cuda.mem_get_info(session.device)
    for dtype in (torch.bfloat16, torch.float32):
        size = 256 if session.tiny else 8192
        a = torch.randn(size, size, device=session.device).to(dtype)
        best = min(session.ms(lambda a=a: a @ a) for _ in range(8))
        found[f"tflops_{str(dtype)[6:]}"] = round(2 * size**3 / best / 1e9, 1)
    for on in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(on)
        given = attention(session, 4, 16, 200)  # 64 rows: 64 modulo 128
        choice = torch._fused_sdp_choice(*given)
        finite = [part.isfinite().all().item() for part in gradients(given, very_negative=True)]
        found["cudnn on" if on else "cudnn off"] = {"chosen": choice, "finite": finite}
        if not on:
            found["cudnn off"]["right"] = all(finite)
    torch.backends.cuda.enable_cudnn_sdp(False)


def attention(session: Session, batch: int, queries: int, keys: int) -> list[torch.Tensor]:
    """Queries, keys, values and mask as one layer of Llama-1B has them; a group is rows."""
    heads, groups, size = (2, 2, 8) if session.tiny else (8, 4, 64)
    dtype = torch.float32 if session.device.type == "cpu" else torch.bfloat16
    rows = groups * queries
    shapes = (batch, heads, rows, size), *[(batch, heads, keys, size)] * 2
    given = [torch.randn(s).to(session.device, dtype).requires_grad_() for s in shapes]
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).repeat(groups, 1)
    width = (keys // 8 + 1) * 8
    mask = torch.full((batch, 1, rows, width), -torch.inf)[..., :keys]
    held = torch.zeros_like(mask).masked_fill(~seen, -torch.inf)
    storage = torch.nn.functional.pad(held, (0, width - keys)).to(session.device, dtype)
    return [*given, storage[..., :keys]]


def gradients(given: list[torch.Tensor], very_negative: bool = False) -> tuple[torch.Tensor, ...]:
    """Output and gradients of attention; with very negative logits, as in Qwen2.5-0.5B."""
    query, key, value, mask = given
    if very_negative:  # about -3000 for each logit
        query = query.abs() * 25
        key = -key.abs() * 25
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
    return (output, *torch.autograd.grad(output.float().sum(), given[:3]))


def kernels(session: Session, found: dict[str, Any]) -> None:
    """cuDNN's attention and the memory-efficient one: first call, second, and new shapes."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    for kernel in chosen if session.device.type == "cuda" else (SDPBackend.MATH,):
        with sdpa_kernel(kernel):
            first = attention(session, 4 if session.tiny else 64, 49, 207)
            times = [session.ms(lambda first=first: gradients(first)) for _ in range(2)]
            found[kernel.name] = {"first": times[0], "second": times[1]}
            shapes = [attention(session, 4 if session.tiny else 64, 50 + n, 210 + 3 * n)
                      for n in range(6)]  # fmt: skip
            new = [session.ms(lambda given=given: gradients(given)) for given in shapes]
            again = [session.ms(lambda given=given: gradients(given)) for given in shapes]
            found[kernel.name] |= {"new": new, "again": again}


# -- 2: the same as on the CPU ----------------------------------------

SMALL = (
    "llama:hidden_size=64,intermediate_size=96,num_hidden_layers=2,num_attention_heads=8,"
    "num_key_value_heads=2,vocab_size=200"
)
#: Settings of tiny shapes; the stand-in for a device has no autocast.
TINY = ("lora.r=4", "num_latents=6", "train.precision=fp32")
QUIET = ("lora.dropout=0", *TINY)


def same(session: Session, found: dict[str, Any]) -> None:
    """Gradients equal the CPU's, with gradient checkpointing too; how often the host waits."""
    import copy

    for name in ("cot", "codi", "pccot", "kava"):
        training = _training(f"recipes/bench/{name}.yaml", SMALL, torch.device("cpu"), 4, QUIET)
        expected = _gradients(training)
        there = copy.deepcopy(training.reasoner).to(session.device)
        plain = type(training).from_reasoner(there, _lengths(), autocast=False)
        here = found[name] = {"from_cpu": _gap(_gradients(plain), expected)}
        here["waits"] = _waits(session, plain.gradients)
        recipe = there.recipe.model_copy(
            update={"train": there.recipe.train.model_copy(update={"gradient_checkpointing": True})}
        )
        there.recipe = recipe
        again = type(training).from_reasoner(there, _lengths(), autocast=False)
        here["checkpointed_from_cpu"] = _gap(_gradients(again), expected)
        gaps = here["from_cpu"], here["checkpointed_from_cpu"]
        here["right"] = max(gaps) < 1e-3


def _gradients(training: Any) -> dict[str, torch.Tensor]:
    training.optimiser.zero_grad()
    training.gradients()
    named = training.reasoner.named_parameters()
    return {name: p.grad.detach().cpu().clone() for name, p in named if p.grad is not None}


def _gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of a gradient, relative to its largest value."""
    if one.keys() != other.keys():
        return float("inf")
    gaps = ((one[n] - other[n]).abs().max() / (other[n].abs().max() + 1e-12) for n in other)
    return max(float(gap) for gap in gaps)


def _waits(session: Session, act: Callable[[], None]) -> int:
    """How often the host waited for the device."""
    import warnings

    if session.device.type != "cuda":
        before = session.waits() if session.waits else 0
        act()
        return (session.waits() if session.waits else 0) - before
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            act()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


# -- 3: the quickstart ----------------------------------------


def quickstart(session: Session, found: dict[str, Any]) -> None:
    """Train the quickstart, break it off, resume, score and serve it; then a while in bf16."""
    import tempfile

    steps = 4 if session.tiny else 300
    with tempfile.TemporaryDirectory() as scratch:
        whole, cut, half = (Path(scratch) / name for name in ("whole", "cut", "half"))
        plain = ("train.precision=fp32",)
        _train(session, whole, steps, plain)
        found["losses"] = _losses(whole)
        _train(session, cut, steps, plain, stop_after=steps // 2 + 1)
        _train(session, cut, steps, plain, resume=True)
        found["losses_resumed"] = _losses(cut)
        pairs = list(zip(found["losses"], found["losses_resumed"], strict=True))
        found["resumed"] = {"right": all(abs(a - b) <= 0.02 * abs(a) + 1e-3 for a, b in pairs)}
        if session.device.type in ("cuda", "cpu"):  # a stand-in for a device has no autocast
            _train(session, half, steps, ("train.precision=bf16",))
            found["losses_bf16"] = _losses(half)
            last, theirs = found["losses"][-1], found["losses_bf16"][-1]
            found["bf16"] = {"right": theirs == theirs and theirs < 2 * last + 0.5}
        _score_and_serve(session, cut, found)


def _train(
    session: Session,
    folder: Path,
    steps: int,
    settings: tuple[str, ...],
    resume: bool = False,
    stop_after: int | None = None,
) -> None:
    from kava.reasoning.resolve import load_resolved
    from kava.system.text import PlainConsole
    from kava.training.callbacks import Record
    from kava.training.run import train_run

    size = ("train.batch_size=4", "data.validation_rows=4") if session.tiny else ()
    every = max(steps // 4, 1)
    keys = [f"train.steps={steps}", f"train.log_every={every}", f"train.save_every={every}",
            "data.train_rows=2000", *size, *settings]  # fmt: skip
    recipe = load_resolved("recipes/quickstart/kava.yaml", keys)

    def stop(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == stop_after:
            raise InterruptedError

    Record.on_step_begin = stop
    try:
        train_run(recipe, folder, PlainConsole(quiet=True), resume, device=str(session.device))
    except InterruptedError:
        pass
    finally:
        del Record.on_step_begin


def _losses(folder: Path) -> list[float]:
    from kava.runs.folder import read_metrics

    return [one["loss"] for one in read_metrics(folder) if "loss" in one]


def _score_and_serve(session: Session, folder: Path, found: dict[str, Any]) -> None:
    from kava.data.tasks import load_task
    from kava.evaluation.score import score_run
    from kava.reasoning.reasoner import Reasoner

    reasoner = Reasoner.from_pretrained(folder, device=session.device)
    task = load_task("synthetic", limit=4 if session.tiny else 200)
    result = score_run(reasoner, task, folder, timed_alone=4)
    found["accuracy"] = result.summary["accuracy"]
    found["ms_per_question"] = result.summary["ms_per_question"]
    question = task.examples[0].question
    alone = reasoner.generate(question, 8)
    try:
        from fastapi.testclient import TestClient

        from kava.serve.app import create_app
        from kava.serve.limits import Limits
    except ImportError as error:
        found["served"] = f"not served: {error}"
        return
    app = create_app(reasoner, "first", Limits(new_tokens=8))
    asked = {
        "model": "first",
        "temperature": 0,
        "messages": [{"role": "user", "content": question}],
    }
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.post("/v1/chat/completions", json={**asked, "max_tokens": 8})
    text = answer.json()["choices"][0]["message"]["content"] if answer.is_success else answer.text
    found["served"] = {"right": text.strip() == alone.strip(), "text": text[:200]}


# -- 4 to 6: steps ----------------------------------------


def _lengths(real: bool = False) -> Any:
    from kava.bench.shapes import Lengths

    return Lengths(source="gsm8k") if real else Lengths((9, 17), (6, 12), (8, 9))


def _training(recipe: str, shape: str, device: torch.device, rows: int, settings=()) -> Any:
    from kava.bench.train import Training
    from kava.reasoning.resolve import load_resolved

    sizes = (f"train.batch_size={rows}", "train.micro_batch_size=null", *settings)
    return Training.build(load_resolved(recipe, list(sizes)), shape, _lengths(), device)


def _steps(
    session: Session, found: dict[str, Any], recipe: str, shape: str, *settings: str
) -> None:
    """Steps on new examples of real lengths: times, memory, and the work that they needed."""
    if session.tiny:
        shape, settings = SMALL, (*settings, *TINY)
    training = _training(recipe, shape, session.device, 2, settings)
    tree = training.reasoner.recipe
    for rows in (2, 4) if session.tiny else (32, 64, 128):
        train = tree.train.model_copy(update={"batch_size": rows})
        training.reasoner.recipe = tree.model_copy(update={"train": train})
        here = found[f"{rows} rows"] = {"ms": [], "work": []}
        try:
            _measured(session, here, training)
        except torch.OutOfMemoryError as error:
            here["failed"] = str(error).splitlines()[0]
            training.optimiser.zero_grad()
        if session.device.type == "cuda":
            torch.cuda.empty_cache()
        session.save()


def _measured(session: Session, here: dict[str, Any], training: Any) -> None:
    on_gpu = session.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(session.device)
    for seed in range(2 if session.tiny else 8):
        training.renew(_lengths(real=not session.tiny), seed)
        here["ms"].append(session.ms(training.step))
        works = [training.reasoner.method.work(batch) for batch in training.micro_batches]
        here["work"].append([
            {"columns": work.columns, "pairs": work.pairs, "labels": work.labels,
             "projected": work.num_projected} for work in works
        ])  # fmt: skip
    if on_gpu:
        here["allocated"] = torch.cuda.max_memory_allocated(session.device)
        here["reserved"] = torch.cuda.max_memory_reserved(session.device)


def one_billion(session: Session, found: dict[str, Any]) -> None:
    """Llama-1B as the paper trains it, and the operations of one step."""
    _steps(session, found, "recipes/llama1b_aug/kava.yaml", "llama-3.2-1b")
    shape, settings = ("llama-3.2-1b", ())
    if session.tiny:
        shape, settings = SMALL, TINY
    rows = 2 if session.tiny else 32
    training = _training("recipes/llama1b_aug/kava.yaml", shape, session.device, rows, settings)
    training.step()
    with torch.profiler.profile() as profile:
        training.step()
        session.wait()
    sort = "self_cuda_time_total" if session.device.type == "cuda" else "self_cpu_time_total"
    table = profile.key_averages().table(sort_by=sort, row_limit=60)
    (session.output / "profile.txt").write_text(table, encoding="utf-8")


def compiled(session: Session, found: dict[str, Any]) -> None:
    """The same with compiled layers, and examples of similar length together."""
    settings = ["train.group_by_length=true"]
    if session.device.type in ("cuda", "cpu"):  # a stand-in for a device has no compiler
        settings.append("train.compile=true")
    _steps(session, found, "recipes/llama1b_aug/kava.yaml", "llama-3.2-1b", *settings)


def others(session: Session, found: dict[str, Any]) -> None:
    """Qwen-0.5B, and Llama-3B with gradient checkpointing."""
    found["qwen"], found["3b"] = {}, {}
    _steps(session, found["qwen"], "recipes/qwen05b_aug/kava.yaml", "qwen2.5-0.5b")
    _steps(session, found["3b"], "recipes/llama3b_aug/kava.yaml", "llama-3.2-3b",
           "train.gradient_checkpointing=true")  # fmt: skip


# -- 7: answers ----------------------------------------


def answers(session: Session, found: dict[str, Any]) -> None:
    """Answers at batch 1 and 64: adapter apart, with autocast, merged; the first and later ones."""
    from kava.bench.generate import Generation
    from kava.bench.shapes import random_reasoner
    from kava.reasoning.resolve import load_resolved

    shape, keys = ("llama-3.2-1b", [])
    if session.tiny:
        shape, keys = SMALL, list(TINY)
    recipe = load_resolved("recipes/llama1b_aug/kava.yaml", keys)
    reasoner = random_reasoner(recipe, shape, session.device).eval()
    for way in ("apart", "autocast", "merged"):
        reasoner.follows_training = way != "apart"
        if way == "merged":
            reasoner.merge()
        for size in (1, 4) if session.tiny else (1, 64):
            one = Generation.build(reasoner, _lengths(real=not session.tiny), size)
            times = [session.ms(one.generate) for _ in range(4)]
            found[f"{way}, batch {size}"] = {"cold": times[0], "warm": times[1:]}
        session.save()


#: In this order; seconds that each may take.
STAGES: dict[str, tuple[float, Callable[..., None]]] = {
    "0 versions": (40, versions),
    "1 kernels": (40, kernels),
    "2 same": (60, same),
    "3 quickstart": (120, quickstart),
    "4 one billion": (80, one_billion),
    "5 compiled": (110, compiled),
    "6 others": (80, others),
    "7 answers": (60, answers),
}
CORRECTNESS = ("0 versions", "2 same", "3 quickstart")


# -- packages ----------------------------------------


def packages() -> tuple[dict[str, str], list[str]]:
    """Versions of the packages that can be imported, and the modules that cannot."""
    found, missing = {"torch": torch.__version__}, []
    for module, package in NEEDED.items():
        try:
            importlib.import_module(module)
            found[package] = version(package)
        except (ImportError, PackageNotFoundError):
            missing.append(module)
    return found, missing


def wheels(missing: list[str]) -> list[str]:
    """How to carry the missing packages to a machine without network."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-"): line for line in pins}
    words = " ".join(pinned.get(NEEDED[m], NEEDED[m]) for m in missing)
    return [
        f"here:  pip download -d wheels -c constraints.txt {words}",
        f"there: pip install --no-index --find-links wheels {words}",
    ]


def main() -> None:
    """Run all stages, or say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu_first"))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes")
    parser.add_argument("--wheels", action="store_true", help="only say which packages are missing")
    given = parser.parse_args()
    _, missing = packages()
    if missing:
        print(f"missing: {', '.join(missing)}", *wheels(missing), sep="\n")
    if given.wheels:
        return
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    there = "cuda" if torch.cuda.is_available() else "cpu"
    stages = STAGES
    if set(missing) - set(OPTIONAL):  # what needs torch alone
        stages = {name: STAGES[name] for name in ("0 versions", "1 kernels")}
    run(Session(torch.device(there), given.tiny, given.output), stages)


if __name__ == "__main__":
    main()
