"""Jobs that two processes do together: `torchrun ... parallel_worker.py FOLDER`.

`FOLDER/jobs.json` lists them; each process writes what came of each into `FOLDER/outcomes-N.json`.
With `fsdp` in the folder's name the weights are split by FSDP2.
"""

import contextlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

import combinations
import torch
from rich.console import Console

torch.set_num_threads(1)
FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


def split_over_cpus() -> None:
    """Let accelerate do on CPUs what it does on accelerators: FSDP2 itself runs on gloo."""
    from accelerate.state import AcceleratorState, DistributedType

    from kava.system import distributed

    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"  # as `accelerate launch --use_fsdp` does
    plain = AcceleratorState.__init__

    def with_fsdp(self, *args, fsdp_plugin=None, **options):
        plain(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if self.distributed_type == DistributedType.MULTI_CPU and fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = with_fsdp
    distributed.check_sharding = lambda: None


@contextlib.contextmanager
def changed(where: object, name: str, value: object):
    """An attribute, for the time of a block."""
    before = getattr(where, name, None)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)


def train(
    recipe: str,
    run: str,
    resume=False,
    stop_after=None,
    poison=None,
    full_disk_at=None,
    asked=None,
):
    """Train as `kava train` does.

    Args:
        stop_after: breaks off after that step, before its validation and its checkpoint.
        poison: a token whose embedding is not a number.
        full_disk_at: from that step on, the main process can write no file above 2 kB.
        asked: a process, and the number of its micro-batch in whose computation it alone is asked
            to stop.

    Returns:
        by which signals it was asked to.
    """
    import kava.training.callbacks
    import kava.training.trainer
    from kava.reasoning.reasoner import Reasoner
    from kava.reasoning.resolve import load_resolved
    from kava.system import distributed, signals
    from kava.training.run import train_run

    received, compute, computed = [], kava.training.trainer.StepTrainer.compute_loss, []
    build, limits = Reasoner.build, resource.getrlimit(resource.RLIMIT_FSIZE)

    def poisoned(*args):
        reasoner = build(*args)
        if poison is not None:
            with torch.no_grad():
                reasoner.lm.get_input_embeddings().weight[poison] = float("nan")
        return reasoner

    def begin(self, args, state, control, **_):
        if state.global_step == stop_after:
            raise InterruptedError
        if state.global_step == full_disk_at and distributed.is_main():
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))

    def struck(*args, **kwargs):
        computed.append(1)
        if [distributed.rank(), len(computed)] == asked:
            os.kill(os.getpid(), signal.SIGUSR2)
        return compute(*args, **kwargs)

    try:
        with (
            signals.listen_for(received, signal.SIGUSR2) if asked else contextlib.nullcontext(),
            signals.defer_signals(),
            changed(kava.training.trainer.StepTrainer, "compute_loss", struck),
            changed(Reasoner, "build", staticmethod(poisoned)),
            changed(kava.training.callbacks.Record, "on_step_begin", begin),
        ):
            train_run(load_resolved(recipe), Path(run), Console(quiet=True), resume)
    except InterruptedError:
        if stop_after is None:
            raise
    except signals.Preempted:
        if asked is None:
            raise
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return received


def score(recipe: str, scored: str, asked=None) -> str:
    """Score a run as a job does; what became of it, and of how many turns there are answers.

    Args:
        asked: a process that is asked to stop while it answers its first questions.
    """
    from kava.reasoning.reasoner import Reasoner
    from kava.reasoning.resolve import load_resolved
    from kava.sweeps.attempt import Run, Scoring, attempt
    from kava.system import distributed, signals

    run, console, received = Path(scored), Console(quiet=True), []
    answer, answered = Reasoner.answer, []

    def struck(*args):
        answered.append(1)
        if distributed.rank() == asked and not received:
            os.kill(os.getpid(), signal.SIGUSR2)
        return answer(*args)

    try:
        with (
            signals.listen_for(received, signal.SIGUSR2),
            changed(Reasoner, "answer", struck),
        ):
            wanted = Run("a", load_resolved(recipe), run)
            scoring = Scoring(("synthetic",), limit=7)
            what = attempt(wanted, scoring, lambda *words: None, console).status
    except signals.Preempted:
        what = names(received)
    if asked is None:
        return what
    return f"{what} after {len(answered)}; predictions: {(run / 'predictions').exists()}"


def names(signals: list[int]) -> str:
    """As they are called."""
    return " ".join(signal.Signals(number).name for number in signals)


def main() -> None:
    """Every job, one after the other."""
    if "fsdp" in FOLDER.name:
        split_over_cpus()
    from kava.errors import KavaError
    from kava.reasoning.losses import cross_entropy
    from kava.system import distributed

    if "KAVA_COMBINATIONS" in os.environ:
        combinations.record(Path(os.environ["KAVA_COMBINATIONS"]))
    cross_entropy.LOGITS_AT_ONCE = 1000  # some labels at a time, where one process has all at once
    outcomes = []
    for job in json.loads((FOLDER / "jobs.json").read_text()):
        try:
            outcomes.append(score(**job) if "scored" in job else names(train(**job)))
        except KavaError as error:
            outcomes.append([error.code, error.key, str(error)])
    (FOLDER / f"outcomes-{distributed.rank()}.json").write_text(json.dumps(outcomes))
    distributed.leave_process_group()
    distributed.exit_process(0)


if __name__ == "__main__":
    main()
