"""The kernels of a program for GPUs, and what they read and write.

A kernel reads its operands and writes its results, whole; but of an operand of which a
fusion takes slices alone, these. So caches, which hold what was written just before,
are left out, and the bytes are rather too many.
"""

from collections.abc import Mapping

from communication.hlo import Instruction, Program, Where, places, size

# Instructions that run nothing on the GPU by themselves.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "conditional", "call", "async-start", "partition-id", "replica-id"),
    *("opt-barrier", "add-dependency"),
}
SENDS = "all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-"
SLICES = "slice", "dynamic-slice"


def is_kernel(instruction: Instruction) -> bool:
    """Whether it runs on the GPU. The end of an asynchronous one does not."""
    done = instruction.opcode.endswith(("-done", "-update"))
    return not done and instruction.opcode not in FREE


def traffic(program: Program) -> list[tuple[Where, int, int]]:
    """(where, bytes, kernels) of each computation, for each place where it runs.

    Collectives are kernels, and what they send is not counted here.
    """
    found, runs = [], places(program)
    for name, body in program.bodies.items():
        types = {instruction.name: instruction.type for instruction in body}
        kernels = [instruction for instruction in body if is_kernel(instruction)]
        nbytes = sum(_touched(program, kernel, types) for kernel in kernels)
        for where in runs.get(name, ()):
            found.append((where, where.trips * nbytes, where.trips * len(kernels)))
    return found


def _touched(program: Program, kernel: Instruction, types: Mapping[str, str]) -> int:
    if kernel.opcode.startswith(SENDS):
        return 0
    results = kernel.type
    if kernel.opcode == "custom-call":  # a matrix product's workspace, unused
        results = results.replace("s8[", "token[")
    fused = program.bodies[kernel.called[0]] if kernel.opcode == "fusion" else []
    read = {
        operand: _read(fused, number, size(types[operand]))
        for number, operand in enumerate(kernel.operands)
    }
    return size(results) + sum(read.values())


def _read(fused: list[Instruction], number: int, whole: int) -> int:
    """Bytes that a fusion reads of one of its operands."""
    names = _named(fused, number)
    sliced = 0
    for instruction in fused:
        if not names.intersection(instruction.operands):
            continue
        if instruction.opcode == "bitcast":
            names.add(instruction.name)
        elif instruction.opcode in SLICES:
            sliced += size(instruction.type)
        else:
            return whole
    return min(sliced, whole) if sliced else whole


def _named(fused: list[Instruction], number: int) -> set[str]:
    """The name of a parameter, by its number."""
    return {
        instruction.name
        for instruction in fused
        if instruction.opcode == "parameter" and instruction.operands == [str(number)]
    }


def kernels_between(body: list[Instruction], place: int) -> int:
    """Kernels scheduled after the start of something asynchronous, before its end."""
    kernels = 0
    for instruction in body[place + 1 :]:
        if body[place].name in instruction.operands:
            break
        kernels += is_kernel(instruction)
    return kernels
