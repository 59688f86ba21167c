"""The package as it installs: ops/, metal/ and configs/ inside natten_zoo/.

python scripts/as_installed.py    # links them there in this clone, which is what editors need
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("ops", "metal", "configs")


def link_package(folder: Path) -> Path:
    """Makes `folder/natten_zoo` of links to what the installed package consists of."""
    package = folder / "natten_zoo"
    package.mkdir(parents=True)
    inside = [p for p in (ROOT / "natten_zoo").iterdir() if p.name != "__pycache__"]
    for path in [*(p for p in inside if p.name not in BESIDE), *(ROOT / n for n in BESIDE)]:
        (package / path.name).symlink_to(path)
    return package


def link_in_place(package: Path) -> None:
    """Links the folders that lie beside `package` into it."""
    for name in BESIDE:
        link = package / name
        if not link.is_symlink():
            link.symlink_to(Path("..", name))


if __name__ == "__main__":
    link_in_place(ROOT / "natten_zoo")
