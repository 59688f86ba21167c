"""Runs mypy over the package as it installs: ops/, metal/ and configs/ inside natten_zoo/.

python scripts/typecheck.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from as_installed import ROOT, link_package


def main() -> int:
    """Returns mypy's exit status."""
    with tempfile.TemporaryDirectory() as temp:
        link_package(Path(temp))
        command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml"]
        command += ["--cache-dir", ROOT / ".mypy_cache", "-p", "natten_zoo"]
        return subprocess.run(command, cwd=temp, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
