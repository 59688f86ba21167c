"""Thousands of damaged files, in a process whose memory and time are watched."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Grows by less than this over all files; one file takes less than this of the processor.
MEGABYTES, SECONDS = 600, 10
CHILD = """
import io, json, logging, random, re, resource, sys, tempfile, time, zipfile
from pathlib import Path
import mlx.core as mx, numpy as np
from natten_zoo import load_pretrained
from natten_zoo.pretrained.readers import CheckpointError, read_checkpoint

logging.disable(logging.CRITICAL)
data, count, seed, megabytes, seconds = Path(sys.argv[1]), *map(int, sys.argv[2:])
rng = random.Random(seed)
folder = Path(tempfile.mkdtemp())


def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])


def npz():
    file = io.BytesIO()
    np.savez_compressed(file, a=np.arange(12.0).reshape(3, 4), b=np.zeros((2, 0)), c=np.ones(99))
    return file.getvalue()


def members(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def packed(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    return file.getvalue()


def damaged(content):
    content = bytearray(content) or bytearray(1)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(content))
        kind = rng.random()
        if kind < 0.5:
            content[at] ^= 1 << rng.randrange(8)
        elif kind < 0.7:
            content[at] = rng.choice((0, 255, *b"RbcQt(}]hq0u.[{,:9"))
        elif kind < 0.8:
            del content[at : at + rng.randrange(1, 40)]
        elif kind < 0.9:
            content[at:at] = content[rng.randrange(len(content)) :][: rng.randrange(400)]
        else:
            content[at : at + 8] = rng.getrandbits(64).to_bytes(8, "little")
        if not content:
            break
    return bytes(content)


header = (data / "dinat-ls-tiny-random" / "model.safetensors").read_bytes()
files = {name: (data / name).read_bytes() for name in ("mmcv.pth", "timm.pth", "tensors.pth")}
files |= {"w.npz": npz(), "w.safetensors": header[:40_000]}
models = [data / name for name in ("nat-tiny-random", "dinat-ls-tiny-random")]
before = peak()
for index in range(count):
    kind = rng.random()
    try:
        start = time.process_time()
        if kind < 0.1:  # a configuration
            model = rng.choice(models)
            for file in model.iterdir():
                target = folder / file.name
                if not target.exists() and not target.is_symlink():
                    target.symlink_to(file.resolve())
            name = rng.choice(("config.json", "preprocessor_config.json"))
            if not (model / name).exists():
                name = "config.json"
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_bytes(damaged((model / name).read_bytes()))
            try:
                load_pretrained(None, folder)
            except ValueError as error:  # CheckpointError, or weights that do not fit
                assert str(folder) in str(error), error
            for file in folder.iterdir():
                file.unlink()
        else:
            name, content = rng.choice(list(files.items()))
            if kind < 0.5 and name.endswith(".pth"):  # with right checksums
                inside = members(content)
                one = rng.choice([n for n in inside if n.endswith("data.pkl")] * 4 + list(inside))
                content = packed({**inside, one: damaged(inside[one])})
            else:
                content = damaged(content)
            path = folder / name
            path.write_bytes(content)
            try:
                mx.eval(read_checkpoint(path).weights)
            except CheckpointError as error:
                assert str(path) in str(error)
            path.unlink()
        spent = time.process_time() - start
        assert spent < seconds, f"{spent:.1f} s"
    except BaseException:
        print("file", index, "of seed", seed, file=sys.stderr)
        raise
grown = (peak() - before) / 2**20
assert grown < megabytes, f"{grown:.0f} MB"
print(f"{count} files, {grown:.0f} MB")
"""


def run(count, seed):
    data = ROOT / "tests" / "fixtures" / "pretrained"
    arguments = [data, *map(str, (count, seed, MEGABYTES, SECONDS))]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert child.stdout.startswith(f"{count} files")


def test_mutants():
    run(300, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_ten_thousand_mutants(seed):
    run(1000, seed)
