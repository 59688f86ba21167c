"""docs/tasks/: code and commands run as they stand, with small models under the published names."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from natten_zoo import cli, get_record
from natten_zoo.models import (
    NAF,
    NAT,
    NAUNETR,
    PMRF,
    AllInOne,
    AllInOneConfig,
    DINOv2,
    DINOv2Config,
    NAFConfig,
    NATConfig,
    NAUNETRConfig,
    OneFormer,
    OneFormerConfig,
    PMRFConfig,
    UPerNet,
    UPerNetConfig,
)
from tests.models import ltx

PAGES = sorted((Path(__file__).parents[2] / "docs" / "tasks").glob("*.md"))
BODY = NATConfig(8, (1, 1), (1, 2), kernel_size=3, num_classes=1000)
SCENE = NATConfig(8, (1, 1, 1, 1), (1, 1, 2, 4), kernel_size=3)
FLOW = {"widths": (16, 32), "depths": (1, 1), "head_dims": 16, "mapping_dim": 16}
SMALL = {
    "nat_mini": lambda: NAT(BODY),
    "dinat_mini": lambda: NAT(BODY),
    "upernet_nat_mini": lambda: UPerNet(UPerNetConfig(BODY, channels=8, num_classes=150)),
    "oneformer_ade20k_dinat_large": lambda: OneFormer(OneFormerConfig(SCENE, 32, 32, depth=1)),
    "harmonix-fold0": lambda: AllInOne(AllInOneConfig(depth=1)),
    "pmrf_blind_face_restoration": lambda: PMRF(PMRFConfig(FLOW, 12, (1,), num_heads=2)),
    "naf": lambda: NAF(NAFConfig(embed_dim=32)),
    "dinov2_small": lambda: DINOv2(DINOv2Config(embed_dim=32, depth=1, num_heads=2)),
}
# What stands in a command or a call before a model's name.
NAMED = re.compile(rf'(--model |--backbone |from_pretrained\(")({"|".join(SMALL)})\b')


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the pages work on."""
    nibabel = pytest.importorskip("nibabel")
    folder = tmp_path_factory.mktemp("desk")
    random = np.random.default_rng(0)
    for name, make in SMALL.items():
        model = make()
        record = get_record(name)
        model.record = replace(
            record, architecture=type(model).__name__, model=model.config.to_dict()
        )
        if name.startswith(("oneformer", "pmrf")):
            model.record = replace(model.record, input_size=64)
        model.save_pretrained(folder / "small" / name)
    NAUNETR(NAUNETRConfig(4, (1, 1), (1, 2), num_classes=2)).save_pretrained(folder / "my-na-unetr")
    ltx.small().save_pretrained(folder / "my-decoder")
    shutil.copy(ltx.FILE, folder / "ltx-2.5-video-vae-bf16.safetensors")
    mx.save_safetensors(str(folder / "latents.safetensors"), {"latents": ltx.latent()})
    photo = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    (folder / "photos" / "goldfish").mkdir(parents=True)
    for path in ("photo.jpg", "photos/goldfish/1.jpg"):
        photo.save(folder / path)
    photo.resize((64, 64)).save(folder / "face.jpg")
    (folder / "rooms" / "images").mkdir(parents=True)
    (folder / "rooms" / "masks").mkdir()
    photo.save(folder / "rooms" / "images" / "1.jpg")
    mask = Image.fromarray(np.arange(64 * 48, dtype=np.uint8).reshape(48, 64) % 150)
    mask.save(folder / "rooms" / "masks" / "1.png")
    frames = [photo.rotate(angle) for angle in range(0, 90, 5)]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:])
    voxels = random.normal(size=(32, 32, 32)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / "ct.nii.gz")
    np.savez(folder / "track.npz", spectrograms=random.random((4, 300, 81), np.float32))
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    mx.random.seed(0)
    text = NAMED.sub(r"\1small/\2", page.read_text())
    commands = re.findall(r"^    natten-zoo ((?!finetune ).+?)(?:  +#.*)?$", text, re.M)
    for command in commands:
        assert cli.main(shlex.split(command)) == 0, capsys.readouterr().err
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert blocks and commands
    names = {}
    for code in blocks:
        exec(code, names)
    assert capsys.readouterr().out


def test_every_task_has_a_page():
    names = {page.stem for page in PAGES}
    assert names == {
        *(
            "classify",
            "segment",
            "video",
            "decode",
            "volumes",
            "music",
            "upsample",
            "evaluate",
            "sample",
            "restore",
        ),
    }
