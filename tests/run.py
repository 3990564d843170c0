"""`make test`: pytest in two processes, since tests wait more than they work: the lab's in one, all others beside it.

`python -m tests.run [PATH...]`: with paths, one process runs those. Labs derive their names from the process, so
nothing is shared. What the second process says is shown when the first has ended; status 0 if both are well.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IN_THE_LAB = ("e2e", "vagrant")


def main() -> int:
    """Run and tell."""
    pytest = [sys.executable, "-m", "pytest", "-rs"]
    if paths := sys.argv[1:]:
        return subprocess.call([*pytest, *paths], cwd=ROOT)
    lab = [f"tests/{name}" for name in IN_THE_LAB]
    with tempfile.TemporaryFile() as said:
        second = subprocess.Popen([*pytest, *lab], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        try:
            first = subprocess.call([*pytest, "tests", *(f"--ignore={path}" for path in lab)], cwd=ROOT)
            print(f"\nmeanwhile, {' and '.join(lab)}:", flush=True)
            status = second.wait()
        finally:
            if second.poll() is None:
                second.terminate()
                second.wait()
        said.seek(0)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    return first or status


if __name__ == "__main__":
    sys.exit(main())
