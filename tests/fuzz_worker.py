"""Commands in one process, one after the other: the imports take longer than they do.

A line of JSON in, {"argv", "cwd"}; a line out, {"code", "out", "err", "raised"}.
"""

import faulthandler
import io
import json
import os
import resource
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import hfdist
import plot
import spectrum
from hfdist.__main__ import main
from hfdist.errors import UsageError
from hfdist.runs.config import from_json, to_json


def read_tree() -> int:
    """from_json of a file: what it accepts it keeps."""
    tree = json.loads(Path(sys.argv[1]).read_text())
    try:
        config = from_json(tree)
    except UsageError as error:
        print(f"from_json: {error}", file=sys.stderr)
        return 2
    assert from_json(to_json(config)) == config
    return 0


MOST_MEMORY, MOST_FILE = 12 * 2**30, 2**28
COMMANDS = {
    "hfdist": main,
    "plot": plot.main,
    "spectrum": spectrum.main,
    "from_json": read_tree,
}


def run(argv: list[str], cwd: str) -> dict:
    """How a command ends, with streams as strict as a process's."""
    os.chdir(cwd)
    sys.argv, code, raised = argv, None, None
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = COMMANDS[argv[0]]()
        except SystemExit as leaving:
            code = leaving.code
        except BaseException:
            raised = traceback.format_exc()
    for stream in (out, err):
        stream.flush()
    texts = (s.buffer.getvalue().decode(errors="replace") for s in (out, err))
    return dict(zip(("out", "err"), texts, strict=True), code=code, raised=raised)


if __name__ == "__main__":
    faulthandler.enable()  # to say where it hangs
    # What reads or writes without end fails, and leaves the machine alone.
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE, MOST_FILE))
    hfdist.make_mesh(4)
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what else is printed is no answer
        for line in sys.stdin:
            print(json.dumps(run(**json.loads(line))), file=answers, flush=True)
