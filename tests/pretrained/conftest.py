import io
import pickle
import zipfile
from pathlib import Path
from typing import ClassVar

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


class Saver(pickle._Pickler):
    """Pickles as `torch.save` does: what is a `Tensor` is written as one of torch."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, file, protocol):
        super().__init__(file, protocol)
        self.storages: dict[str, np.ndarray] = {}

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Tensor):
            return self._save_tensor(value.array)
        return super().save(value, save_persistent_id)

    def save_global(self, value, name=None):
        try:
            super().save_global(value, name)
        except pickle.PicklingError:  # of a package that is not installed
            self.write(f"c{value.__module__}\n{value.__qualname__}\n".encode())

    def _save_tensor(self, array):
        key = str(len(self.storages))
        self.storages[key] = np.ascontiguousarray(array)
        steps = np.empty(array.shape, array.dtype).strides
        stride = tuple(step // array.itemsize for step in steps)
        kind = {"f": "FloatStorage", "i": "LongStorage"}[array.dtype.kind]
        body = tensor(key, kind, array.size, 0, array.shape, stride)
        self.write(body)


Saver.dispatch[type] = Saver.save_global


class Tensor:
    """A tensor to be saved."""

    def __init__(self, array):
        self.array = np.array(array, np.float32)


def save_torch(path: Path, value, *, root="archive", protocol=2) -> Path:
    """What `torch.save(value, path)` writes, without torch."""
    program = io.BytesIO()
    saver = Saver(program, protocol)
    saver.dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", program.getvalue())
        for key, values in saver.storages.items():
            archive.writestr(f"{root}/data/{key}", values.tobytes())
    return path


def state(model) -> dict[str, Tensor]:
    """The state dict of a model in torch's layouts."""
    from mlx.utils import tree_flatten

    arrays = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    return {
        name: Tensor(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array)
        for name, array in arrays.items()
    }


@pytest.fixture(scope="session")
def pico():
    """A small NAT, the same in every test."""
    import mlx.core as mx

    from natten_zoo import create_model

    mx.random.seed(0)
    return create_model("nat_pico_fashion", num_classes=3).eval()


@pytest.fixture(scope="session")
def pico_state(pico):
    return state(pico)
