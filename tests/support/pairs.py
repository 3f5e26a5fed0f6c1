"""The checker between different versions of PostgreSQL: `make test-pairs`, or `python -m tests.support.pairs 14.17 18` for some of them.

What can't be had on this machine is said as "not run", and is no failure; with --strict it is one.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support import fetched

EMBEDDED = "18"


def main(arguments: list[str]) -> int:
    chosen = [version for version in arguments if not version.startswith("--")] or [*fetched.NPM, EMBEDDED]
    if unknown := [version for version in chosen if version not in fetched.NPM and version != EMBEDDED]:
        print(f"error: no such version: {', '.join(unknown)}\nfix: choose from {', '.join(fetched.NPM)}, {EMBEDDED}", file=sys.stderr)
        return 2
    found, missing = [], []
    for version in chosen:
        try:
            found.append(f"{version}={fetched.postgres(version) if version != EMBEDDED else ''}")
        except fetched.NotHereError as error:
            missing.append(str(error))
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "600", "tests/matrix/check_pairs.py"]
    code = subprocess.run(command, cwd=fetched.ROOT, env=os.environ | {"TOCSIN_TEST_PAIRS": os.pathsep.join(found)}, check=False).returncode
    for reason in missing:
        print(f"not run: {reason}")
    return code or int(bool(missing) and "--strict" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
