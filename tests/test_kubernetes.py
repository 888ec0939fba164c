"""launch/kubernetes.yaml and launch/Dockerfile, without a cluster."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

import idx_files
from together import free_port, run_together

ROOT = Path(__file__).parent.parent
DOCUMENTS = {
    document["kind"]: document
    for document in yaml.safe_load_all((ROOT / "launch/kubernetes.yaml").read_text())
}
SERVICE, JOB = DOCUMENTS["Service"], DOCUMENTS["Job"]
POD = JOB["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENV = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_document_fits_the_published_schema(kind, version):
    """Strict: a field that Kubernetes does not know is an error."""
    kubernetes_validate.validate(DOCUMENTS[kind], version, strict=True)


def test_the_names_lead_to_each_other():
    name, service = JOB["metadata"]["name"], SERVICE["metadata"]["name"]
    (port,) = SERVICE["spec"]["ports"]
    assert ENV["HFDIST_COORDINATOR"] == f"{name}-0.{service}:{port['port']}"
    assert CONTAINER["ports"] == [{"containerPort": port["port"]}]
    assert POD["subdomain"] == service
    assert SERVICE["spec"]["selector"] == {"job-name": name}
    assert SERVICE["spec"]["clusterIP"] == "None"


def test_there_are_as_many_pods_as_processes():
    spec = JOB["spec"]
    assert spec["completionMode"] == "Indexed"
    assert (
        spec["completions"] == spec["parallelism"] == int(ENV["HFDIST_NUM_PROCESSES"])
    )


def test_the_run_directory_is_on_the_shared_volume():
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert mounts.keys() == volumes.keys()
    claim = DOCUMENTS["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    named = volumes["runs"]["persistentVolumeClaim"]["claimName"]
    assert named == claim["metadata"]["name"]
    assert f"--run-dir={mounts['runs']}/hfdist" in CONTAINER["args"]


@pytest.mark.slow
def test_pods_train_together(tmp_path):
    """Two processes with the environment and the arguments of two pods."""
    data = idx_files.make_folder(tmp_path / "data")
    coordinator = f"localhost:{free_port()}"  # no pod of that name is here
    pods = [
        {**ENV, "HFDIST_COORDINATOR": coordinator, "JOB_COMPLETION_INDEX": str(index)}
        for index in range(2)
    ]
    done = run_together(
        pods,
        *CONTAINER["args"],
        *("--data.dir", data, "--data.classes", "3", "--batch-size", "8"),
        *("--max-steps", "3", "--run-dir", tmp_path / "run"),
    )
    assert [code for code, _ in done] == [0, 0], done
    assert json.loads((tmp_path / "run/config.json").read_text())["processes"] == 2
    assert ["steps" in output for _, output in done] == [True, False]


def test_the_image_gets_what_it_needs(tmp_path):
    """The wheel that the Dockerfile installs, from what the Dockerfile copies."""
    text = (ROOT / "launch/Dockerfile").read_text()
    copied = []
    for sources, target in re.findall(r"^COPY (.+) (\S+)$", text, re.M):
        for source in sources.split():
            copied.append(source)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target)
            else:
                shutil.copy(ROOT / source, tmp_path / target)
    ignored = (ROOT / "launch/Dockerfile.dockerignore").read_text()
    assert re.findall(r"^!(.+)$", ignored, re.M) == copied

    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(build, cwd=tmp_path, check=True)
    (wheel,) = tmp_path.glob("dist/*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "hfdist/cluster/processes.py" in names
    assert "hfdist/tasks/mnist/train-images-idx3-ubyte.gz" in names
    assert (tmp_path / CONTAINER["args"][1]).exists()
    assert f"--uid {POD['securityContext']['runAsUser']} " in text
