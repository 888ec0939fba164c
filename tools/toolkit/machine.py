"""What figures were taken on, in words."""

import os
import platform
from pathlib import Path


def machine(device: dict[str, str]) -> str:
    """The accelerator's name, or the processor's with its number of cores in use."""
    if device["platform"] != "cpu":
        return device["kind"]
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        name = next(
            (v.strip() for k, _, v in fields if k.strip() == "model name"), name
        )
    return f"{name}, {os.cpu_count()} cores"
