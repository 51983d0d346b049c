"""Many runs: planned, counted, and carried out here or as jobs of SLURM.

attempt.py   one run: what is to do about it, and doing it
local.py     one run after the other, here
slurm.py     a job for each run, through submitit
record.py    what a sweep's folder remembers: its runs, their jobs
status.py    `kava sweep --status`
"""
