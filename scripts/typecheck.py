"""Runs mypy over the package as it installs: ops/, metal/ and configs/ inside natten_zoo/.

python scripts/typecheck.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Returns mypy's exit status."""
    with tempfile.TemporaryDirectory() as temp:
        package = Path(temp, "natten_zoo")
        package.mkdir()
        inside = [p for p in (ROOT / "natten_zoo").iterdir() if p.name != "__pycache__"]
        for path in [*inside, ROOT / "ops", ROOT / "metal", ROOT / "configs"]:
            (package / path.name).symlink_to(path)
        command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml"]
        command += ["--cache-dir", ROOT / ".mypy_cache", "-p", "natten_zoo"]
        return subprocess.run(command, cwd=temp, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
