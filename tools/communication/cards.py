"""NVIDIA's cards: what XLA compiles for, and what they can do at most.

What XLA is told of a card is what it reads on one (openxla/xla,
xla/backends/gpu/target_config/specs). Peaks are those of NVIDIA's data sheets (A100
80GB, H100, H200, HGX B200), of dense matrices; NVLink is one direction, half of the
sheet's figure. `network` is what DGX systems have: one adapter for each GPU, of 200
Gb/s (DGX A100), else of 400.
"""

from typing import NamedTuple

# Of a message over NVLink. NCCL's own model (src/graph/tuning.cc) has 0.5 to 3.4 µs by
# protocol, and 2.7 to 14 over a network.
NVLINK_LATENCY = 2e-6  # s
# The least that a kernel takes, with its launch, one after the other: 3.4 µs in a CUDA
# graph and 3.8 without (NVIDIA's blog, "Getting started with CUDA graphs", 2019).
KERNEL = 3.5e-6  # s
JAX_TAKES = 0.75  # of a card's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says more


class Card(NamedTuple):
    """One kind of GPU."""

    name: str
    capability: tuple[int, int]  # compute capability, major and minor
    cores: int  # streaming multiprocessors
    units: int  # of float32 in each
    shared_memory: tuple[int, int]  # bytes of a core, and of a block that asks for it
    cache: int  # bytes, L2
    clock: float  # GHz
    memory: int  # bytes
    bandwidth: float  # bytes/s of the memory
    peak: dict[str, float]  # flop/s by number format
    nvlink: float  # bytes/s that a GPU can send within its host
    network: float  # bytes/s that a GPU can send to other hosts

    @property
    def target(self) -> str:
        """The text of XLA's GpuTargetConfigProto."""
        major, minor = self.capability
        core, block = self.shared_memory
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: {core}
  shared_memory_per_block_optin: {block}
  core_count: {self.cores}  fpus_per_core: {self.units}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: {self.bandwidth:.0f}  l2_cache_size: {self.cache}
  clock_rate_ghz: {self.clock}  device_memory_size: {self.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "NVIDIA {self.name}"
"""


H100 = Card(
    name="H100 SXM",
    capability=(9, 0),
    cores=132,
    units=128,
    shared_memory=(233_472, 232_448),
    cache=52_428_800,
    clock=1.98,
    memory=84_942_979_072,
    bandwidth=3.352e12,
    peak={"float32": 67e12, "tf32": 494e12, "bfloat16": 989e12, "float64": 67e12},
    nvlink=450e9,
    network=50e9,
)
CARDS = {
    "A100": Card(
        name="A100 SXM 80GB",
        capability=(8, 0),
        cores=108,
        units=64,
        shared_memory=(167_936, 166_912),
        cache=41_943_040,
        clock=1.41,
        memory=85_100_068_864,
        bandwidth=2.039e12,
        peak={
            "float32": 19.5e12,
            "tf32": 156e12,
            "bfloat16": 312e12,
            "float64": 19.5e12,
        },
        nvlink=300e9,
        network=25e9,
    ),
    "H100": H100,
    # The same processor with more memory.
    "H200": H100._replace(name="H200 SXM", memory=151_397_597_184, bandwidth=4.8e12),
    "B200": Card(
        name="B200 SXM",
        capability=(10, 0),
        cores=148,
        units=128,
        shared_memory=(233_472, 232_448),
        cache=132_644_864,
        clock=1.965,
        memory=191_514_411_008,
        bandwidth=7.672e12,
        peak={
            "float32": 75e12,
            "tf32": 1_100e12,
            "bfloat16": 2_250e12,
            "float64": 37e12,
        },
        nvlink=900e9,
        network=50e9,
    ),
}
