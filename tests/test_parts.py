"""Checkpoints in parts: arrays that devices share out, on other devices again."""

import os
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import hfdist
from hfdist.runs import parts
from hfdist.runs.checkpoint import Checkpoints, Unsound
from hfdist.runs.saver import Saver

MESH = hfdist.make_mesh(4)


def split(array, *spec, mesh=MESH):
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))


PARAMS = {
    "kernel": split(jnp.arange(96.0).reshape(8, 12), None, "data"),
    "half": split(jnp.arange(24, dtype="bfloat16"), "data"),
    "bias": jnp.ones(7),
}
STATE = {"vector": split(jnp.sin(jnp.arange(48)), "data"), "count": jnp.int32(3)}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A checkpoint of step 5, its pieces of four rows or numbers at most."""
    monkeypatch.setattr(parts, "LARGEST", 4 * 8)
    folder = tmp_path / "checkpoints"
    with closing(Saver(folder, "a run")) as saver:
        saver.save(5, PARAMS, STATE, {"step": 5})
    return Checkpoints(folder, "a run")


def on(mesh):
    """Where arrays like the saved ones are on the devices of a mesh."""

    def place(array, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    params = {
        "kernel": place(PARAMS["kernel"], None, "data"),
        "half": place(PARAMS["half"]),
        "bias": place(PARAMS["bias"]),
    }
    state = {k: place(v, *["data"] * v.ndim) for k, v in STATE.items()}
    return {"params": params, "optimizer": state}


HOST = {
    name: jax.tree.map(lambda a: np.empty(a.shape, a.dtype), tree)
    for name, tree in {"params": PARAMS, "optimizer": STATE}.items()
}
DEVICES = {
    "the same": {"params": PARAMS, "optimizer": STATE},
    "two": on(Mesh(MESH.devices[:2], "data")),
    "three": on(Mesh(MESH.devices[:3], "data")),
    "one": on(Mesh(MESH.devices[:1], "data")),
    "the host": HOST,
}


@pytest.mark.parametrize("devices", DEVICES)
def test_parts_come_back_on_any_devices(saved, devices):
    like = DEVICES[devices]
    items, _ = saved.restore(5, **like)
    expected = {"params": PARAMS, "optimizer": STATE}
    assert jax.tree.all(jax.tree.map(np.array_equal, items, expected))
    kinds = jax.tree.map(lambda a: a.dtype, (items, expected))
    assert kinds[0] == kinds[1]
    if devices != "the host":
        for array, place in zip(*map(jax.tree.leaves, (items, like)), strict=True):
            assert array.sharding.is_equivalent_to(place.sharding, array.ndim)


def test_a_whole_array_is_shared_out(tmp_path):
    folder, whole = tmp_path / "checkpoints", jnp.arange(12.0).reshape(3, 4)
    with closing(Saver(folder, "a run")) as saver:
        saver.save(5, {"w": whole}, {"count": jnp.int32(1)}, {})
    assert not list(folder.glob("5/parts"))
    like = {"w": split(jnp.zeros((3, 4)), None, "data")}
    items, _ = Checkpoints(folder, "a run").restore(5, params=like)
    assert items["params"]["w"].sharding == like["w"].sharding
    assert np.array_equal(items["params"]["w"], whole)


def test_a_range_is_written_once_and_read_once(saved, monkeypatch):
    (file,) = (saved.folder / "5/parts").iterdir()
    shared = [PARAMS["kernel"], PARAMS["half"], STATE["vector"]]
    nbytes = sum(array.nbytes for array in shared)
    assert file.stat().st_size == nbytes
    read, seen = parts.Piece.read, []
    monkeypatch.setattr(
        parts.Piece, "read", lambda piece: seen.append(piece.size) or read(piece)
    )
    saved.restore(5, params=PARAMS, optimizer=STATE)
    assert sum(seen) == nbytes
    assert max(seen) <= parts.LARGEST
    assert saved.verify(5) == nbytes + PARAMS["bias"].nbytes + 4


def test_of_devices_that_have_the_same_one_writes(tmp_path):
    mesh = Mesh(MESH.devices.reshape(2, 2), ("data", "copy"))
    array = split(jnp.arange(8.0), "data", mesh=mesh)
    (first, second) = parts.cut("w", array)
    assert [first[1], second[1]] == [[0], [4]]
    assert np.array_equal(np.concatenate([first[2], second[2]]), array)


def remove(file):
    file.unlink()


def shorten(file):
    os.truncate(file, file.stat().st_size - 1)


def change(file):
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(raw)


def link(file):
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))


HARMS = {
    remove: "No such file",
    shorten: "in part 0, but was saved as",
    change: r"optimizer.vector from \[12\] on is .* in part 0, but was saved as",
    link: "neither a file nor a folder",
}


@pytest.mark.parametrize("harm", HARMS)
def test_damage_to_a_part_is_found(saved, harm):
    harm(saved.folder / "5/parts/0")
    for read in (saved.verify, lambda step: saved.restore(step, **DEVICES["one"])):
        with pytest.raises(Unsound, match=HARMS[harm]):
            read(5)
