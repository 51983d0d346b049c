"""Plan many runs, estimate their cost, and run them here or as SLURM jobs.

attempt.py   one run: decide what it needs, and do it
local.py     runs on this machine, one after the other
slurm.py     one SLURM job per run, through submitit
record.py    what a sweep's folder records: its runs and their jobs
status.py    `kava sweep --status`
"""
