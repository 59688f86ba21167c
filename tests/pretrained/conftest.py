import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parents[1] / "fixtures" / "pretrained"


@pytest.fixture
def data() -> Path:
    return DATA


def literal(value) -> bytes:
    """The instructions that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tensor(
    key="0", kind="FloatStorage", count=6, offset=0, shape=(2, 3), stride=(3, 1), dtype=None
) -> bytes:
    """The instructions that rebuild a tensor, as torch writes them."""
    storage = b"(" + literal("storage") + name("torch", kind)
    storage += literal(key) + literal("cpu") + literal(count) + b"tQ"
    hooks = name("collections", "OrderedDict") + b")R"
    version = "2" if dtype is None else "3"
    arguments = storage + b"".join(map(literal, (offset, shape, stride, False))) + hooks
    arguments += b"" if dtype is None else name("torch", dtype)
    return name("torch._utils", f"_rebuild_tensor_v{version}") + b"(" + arguments + b"tR"


def dictionary(**items: bytes) -> bytes:
    body = b"".join(literal(key) + value for key, value in items.items())
    return b"}(" + body + b"u"


class TorchZip:
    """Assembles torch archives from instructions, good ones and bad ones."""

    literal = staticmethod(literal)
    name = staticmethod(name)
    tensor = staticmethod(tensor)
    dictionary = staticmethod(dictionary)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, program: bytes, storages=None, *, members=None, root="archive", compress=False):
        path = self.folder / "weights.pth"
        if storages is None:
            storages = {"0": np.arange(6, dtype="<f4")}
        method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr(f"{root}/data.pkl", b"\x80\x02" + program + b".")
            for key, values in storages.items():
                archive.writestr(f"{root}/data/{key}", np.asarray(values).tobytes())
            for member, content in (members or {"archive/version": b"3\n"}).items():
                archive.writestr(member, content)
        return path


@pytest.fixture
def torch_zip(tmp_path) -> TorchZip:
    return TorchZip(tmp_path)
