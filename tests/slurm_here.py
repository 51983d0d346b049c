"""A real SLURM on this machine: munged, slurmctld and slurmd in a folder of their own.

They run as the user who tests, on free ports, and end with the block. One node, this machine.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
CONFIGURATION = """
ClusterName=kava
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller}
SlurmdPort={node}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=600 State=UP
PartitionName=other Nodes={host} MaxTime=600 State=UP
PartitionName=shut Nodes={host} MaxTime=600 State=DOWN
"""


class CannotStart(Exception):
    """There is no SLURM here, or it does not come up; says which part and why."""


@contextmanager
def slurm() -> Iterator[Path]:
    """Its folder, with `slurm.conf`, whose path SLURM_CONF has to name.

    Raises:
        CannotStart: a program is missing, or does not run here.
    """
    os.environ["PATH"] += os.pathsep + "/usr/sbin"  # where Debian puts the daemons
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise CannotStart(f"{program} is not installed (apt-get install slurm-wlm)")
    # Of pytest's folders the paths are too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="kava-slurm-"))
    folder.chmod(0o755)  # munged wants everybody to reach its socket
    daemons: list[subprocess.Popen] = []
    try:
        _start(folder, daemons)
        yield folder
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, daemons: list[subprocess.Popen]) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    names = {name: folder / f"munge{end}" for name, end in _MUNGE.items()}
    munge = ["munged", "--foreground", "--num-threads=2"]
    munge += [f"--{name}={file}" for name, file in names.items()]
    daemons.append(_daemon(folder, munge))
    _wait(names["socket"].exists, "munged", folder, daemons)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    controller, node = _free_ports(2)
    text = CONFIGURATION.format(
        host=host, user=getuser(), folder=folder, controller=controller, node=node,
        cpus=os.cpu_count(),
    )  # fmt: skip
    (folder / "slurm.conf").write_text(text)
    daemons.append(_daemon(folder, ["slurmctld", "-D"]))
    daemons.append(_daemon(folder, ["slurmd", "-D", "-N", host]))

    def idle() -> bool:
        done = subprocess.run(
            ["sinfo", "--noheader", "--partition=main", "--format=%T"],
            capture_output=True, text=True, env=environment(folder),
        )  # fmt: skip
        return done.stdout.strip() == "idle"

    _wait(idle, "slurmctld and slurmd", folder, daemons)


_MUNGE = {
    "key-file": ".key", "socket": ".socket", "pid-file": ".pid", "log-file": ".log",
    "seed-file": ".seed",
}  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """In which SLURM's commands speak to this one."""
    return {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}


def _daemon(folder: Path, words: list[str]) -> subprocess.Popen:
    with (folder / f"{words[0]}.out").open("w") as out:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment(folder)
        )


def _wait(ready, what: str, folder: Path, daemons: list[subprocess.Popen]) -> None:
    end = time.monotonic() + 20
    while not ready():
        gone = next((daemon for daemon in daemons if daemon.poll() is not None), None)
        if gone or time.monotonic() > end:
            said = [
                file.read_text(errors="replace").strip().splitlines()[-1:]
                for file in sorted(folder.glob("*.out"))
            ]
            raise CannotStart(f"{what} did not come up: {said}")
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
