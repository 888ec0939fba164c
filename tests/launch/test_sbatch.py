"""launch/slurm.sbatch around a stand-in for srun."""

import os
import subprocess

import pytest

from together import ROOT, clean_environment


@pytest.mark.parametrize(
    ("silence", "wait"), [(None, 15), ("40", 43), ("08.5", 11), ("abc", 3)]
)
def test_srun_waits_longer_than_a_process_is_missed(tmp_path, silence, wait):
    for name, code in {"srun": 'echo "$@"', "hfdist": ":"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    env = clean_environment() | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
    }
    if silence:
        env["HFDIST_SILENCE_SECONDS"] = silence
    done = subprocess.run(
        ["bash", ROOT / "launch/slurm.sbatch", "config.py", "--epochs", "1"],
        env=env,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    assert f" --wait={wait} {tmp_path}/hfdist train config.py " in done.stdout
    assert done.stdout.endswith("--run-dir runs/slurm-7 --epochs 1\n")
