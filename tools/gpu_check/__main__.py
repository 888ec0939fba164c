"""One part in a process of its own: python -m gpu_check PART FOLDER DEADLINE [quick].

It says all in FOLDER/said.jsonl, an object a line: {"row": …}, {"note": …}, at the end
perhaps {"skipped": why} or {"error": what}.
"""

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from gpu_check.part import NAME, Skipped, Work
from hfdist.errors import told
from toolkit.command_line import to_json


def main(name: str, folder: str, deadline: str, quick: str = "") -> int:
    """Exit code 1 if the part raised something."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    work = Work(Path(folder), bool(quick), float(deadline))
    with open(work.folder / NAME, "a") as file:

        def say(kind, what):
            print(to_json({kind: what}), file=file, flush=True)

        try:
            part = importlib.import_module(f"gpu_check.{name}")
            for said in part.measure(work):
                say("row" if isinstance(said, dict) else "note", said)
        except Skipped as why:
            say("skipped", str(why))
        except Exception as error:
            traceback.print_exc()
            say("error", told(error))
            return 1
    return 0


def _end_with(parent: int) -> None:
    """End this process and those it started when its parent has been killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
