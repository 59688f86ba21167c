"""What models are for: one row per task, with all that the tools need to know of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What a kind of model does, takes and learns from.

    Args:
        name: What `Model.TASK` says: Hugging Face's name where it has one.
        short: A word for it, where a line has little room.
        inputs: What its models look at, in the plural.
        verb: The command that does it, `natten-zoo VERB`; `""` if none does.
        hub: What the Hub files it under. Default: `name`.
        sides: Whether an input has sides, so that a size tells what it costs.
        unit: What a side is counted in.
        use: How a model is used, for its card: Python in which `{name}` is the model's class and
            `{repo_id}` its repository.
        data_sets: Names of the data sets that the trainer has for it.
        files: The files of a user's that it can be trained on; `""` if there are none.
    """

    name: str
    short: str
    inputs: str
    verb: str = ""
    hub: str = ""
    sides: bool = False
    unit: str = "pixels"
    use: str = ""
    data_sets: tuple[str, ...] = ()
    files: str = ""

    @property
    def learns_from(self) -> str:
        """What the trainer takes for it, in words; `""` if it does not train such models."""
        return " or ".join((*filter(None, (self.files,)), *self.data_sets))

    @property
    def of_pictures(self) -> bool:
        """Whether its inputs are prepared as images are: resized, cropped, divided by 255."""
        return self.inputs in ("images", "clips")


SCENES = "a folder of images/* and masks/*.png"

_ALL = (
    Task(
        name="image-classification",
        short="image",
        inputs="images",
        verb="classify",
        sides=True,
        use="""\
from natten_zoo.models import {name}
from natten_zoo.tasks import classify

model = {name}.from_pretrained("{repo_id}")
for guess in classify(model, "photo.jpg").best:
    print(f"{{guess.probability:6.1%}}  {{guess.label}}")
""",
        data_sets=("fashion_mnist",),
        files="a folder, an archive or a CSV file of images",
    ),
    Task(
        name="image-segmentation",
        short="segment",
        inputs="images",
        verb="segment",
        sides=True,
        use="""\
from natten_zoo.models import {name}
from natten_zoo.tasks.segmentation import segment

result = segment({name}.from_pretrained("{repo_id}"), "photo.jpg")
result.overlay().save("overlay.png")
print(result.classes())
""",
        files=SCENES,
    ),
    Task(
        name="universal-segmentation",
        short="segments",
        inputs="images",
        verb="segment",
        hub="image-segmentation",
        sides=True,
        use="""\
from natten_zoo.models import {name}
from natten_zoo.tasks.universal import find_segments

result = find_segments({name}.from_pretrained("{repo_id}"), "photo.jpg", "panoptic")
result.overlay().save("overlay.png")
print(result.describe())
""",
        files=SCENES,
    ),
    Task(
        name="image-feature-extraction",
        short="features",
        inputs="images",
        verb="upsample",
        use="""\
import mlx.core as mx
from natten_zoo.models import {name}

model = {name}.from_pretrained("{repo_id}")
image = mx.random.normal((1, 224, 224, 3))  # normalized as for the model of the features
features = mx.random.normal((1, 14, 14, 384))  # what that model makes of it
upsampled = model(image, features)  # [1, 224, 224, 384]
""",
    ),
    Task(
        name="image-backbone",
        short="backbone",
        inputs="images",
        verb="upsample",
        hub="image-feature-extraction",
        sides=True,
        use="""\
from natten_zoo.models import NAF, {name}
from natten_zoo.tasks import upsample_features

backbone, naf = {name}.from_pretrained("{repo_id}"), NAF.from_pretrained("naf")
found = upsample_features(naf, backbone, "photo.jpg")
print(found.features.shape, found.upsampled.shape)
""",
    ),
    Task(
        name="video-classification",
        short="video",
        inputs="clips",
        verb="classify-video",
        sides=True,
        use="""\
from natten_zoo.models import {name}
from natten_zoo.tasks.video import classify_video

probabilities = classify_video({name}.from_pretrained("{repo_id}"), "clip.mp4")
print((-probabilities).argsort()[:5])
""",
        data_sets=("moving_fashion",),
    ),
    Task(
        name="video-decoding",
        short="decoder",
        inputs="latents",
        verb="decode-video",
        hub="image-to-video",
        use="""\
from natten_zoo.data import write_video
from natten_zoo.models import {name}
from natten_zoo.tasks import decode_video, read_latents

model = {name}.from_pretrained("{repo_id}")
latents = read_latents("latents.safetensors", model.config.in_chans)
frames = decode_video(model, latents, memory=12 * 10**9)
write_video("video.mp4", frames[0], fps=24)
""",
    ),
    Task(
        name="volume-segmentation",
        short="volume",
        inputs="volumes",
        verb="segment-volume",
        hub="image-segmentation",
        sides=True,
        unit="voxels",
        use="""\
from natten_zoo.models import {name}
from natten_zoo.tasks.volumes import segment_volume

result = segment_volume({name}.from_pretrained("{repo_id}"), "scan.nii.gz")
result.save("mask.nii.gz")
print(result.classes())
""",
        files="a folder of images/*.nii.gz and labels/*.nii.gz",
    ),
    Task(
        name="unconditional-image-generation",
        short="sampling",
        inputs="noise",
        verb="sample",
        use="""\
from natten_zoo.models import {name}
from natten_zoo.tasks import sample

found = sample({name}.from_pretrained("{repo_id}"), 16, steps=50, seed=0)
found.grid().save("samples.png")
""",
        data_sets=("fashion_mnist",),
        files="a folder, an archive or a CSV file of images",
    ),
    Task(
        name="image-restoration",
        short="restore",
        inputs="faces",
        verb="restore",
        hub="image-to-image",
        use="""\
from natten_zoo.models import {name}
from natten_zoo.tasks import restore

result = restore({name}.from_pretrained("{repo_id}"), "face.jpg")
result.image.save("restored.png")
""",
    ),
    Task(
        name="sequence-classification",
        short="sequence",
        inputs="sequences",
        hub="audio-classification",
        use="""\
import numpy as np
from natten_zoo.data import SequencePreprocess
from natten_zoo.models import {name}

model = {name}.from_pretrained("{repo_id}")
prepare = SequencePreprocess.from_record(model.record)
logits = model(prepare(np.sin(np.arange(40)))[None])
""",
        data_sets=("mnist1d", "mnist1d_fresh"),
    ),
    Task(
        name="audio-classification",
        short="audio",
        inputs="spectrograms",
        verb="analyze-music",
        use="""\
import numpy as np
from natten_zoo.models import {name}
from natten_zoo.tasks.music import analyze

spectrograms = np.load("track.npz")["spectrograms"]  # [stems, frames, bands]
found = analyze({name}.from_pretrained("{repo_id}"), spectrograms)
print(found.beats, found.sections)
""",
    ),
)

# By name.
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
# The data sets that the trainer has, whatever for.
DATA_SETS = tuple(sorted({name for task in _ALL for name in task.data_sets}))


def find_task(name: str) -> Task:
    """The row of a task; of one that is in no row, what goes without saying."""
    return TASKS.get(name) or Task(name, short=name, inputs="inputs")
