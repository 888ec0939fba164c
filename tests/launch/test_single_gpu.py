"""launch/single_gpu.sh, as far as it goes without a GPU."""

import json
import subprocess

import idx_files
from together import ROOT, clean_environment

CONFIG = """
import json, os, pathlib, runpy
names = ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS")
pathlib.Path({file!r}).write_text(json.dumps([os.environ.get(n) for n in names]))
config = runpy.run_path({sgd!r})["config"]
"""


def run(tmp_path, *arguments, **env):
    """(exit code, the variables that the config saw)."""
    file, config = tmp_path / "seen.json", tmp_path / "config.py"
    sgd = str(ROOT / "configs/paper/sgd.py")
    config.write_text(CONFIG.format(file=str(file), sgd=sgd))
    base = clean_environment()
    del base["JAX_PLATFORMS"]  # of conftest.py
    base.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        [ROOT / "launch/single_gpu.sh", config, *map(str, arguments)],
        cwd=tmp_path,
        env=base | env,
        capture_output=True,
        timeout=120,
    )
    return done.returncode, json.loads(file.read_text())


def test_it_takes_the_first_gpu_and_nothing_else(tmp_path):
    code, seen = run(tmp_path, "--max-steps", "none")
    assert (code, seen) == (2, ["0", "cuda"])


def test_the_environment_comes_first(tmp_path):
    data = idx_files.make_folder(tmp_path / "data")
    settings = ("--data.dir", data, "--data.classes", "3", "--max-steps", "1")
    code, seen = run(tmp_path, *settings, CUDA_VISIBLE_DEVICES="1", JAX_PLATFORMS="cpu")
    assert (code, seen) == (0, ["1", "cpu"])
