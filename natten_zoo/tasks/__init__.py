"""What the models are for: one module per task, from a file to an answer.

Examples:
    >>> from natten_zoo import get_record
    >>> task_of(get_record("nat_mini")).verb
    'classify'
"""

from ..configs.record import Record
from ..configs.tasks import TASKS, Task, find_task
from ..models import ARCHITECTURES
from .classification import Classification, Guess, classify
from .evaluation import Evaluation, evaluate
from .latents import read_latents
from .mask_evaluation import MaskEvaluation, evaluate_masks
from .music import MusicAnalysis, analyze
from .restoration import Restored, restore
from .sampling import Samples, sample
from .segmentation import Segmentation, segment
from .segments import Segments
from .universal import find_segments
from .upsampling import Upsampled, upsample_features
from .video import classify_video
from .video_decoding import decode_video
from .video_memory import plan_decoding
from .video_tiles import Tiling
from .volumes import VolumeSegmentation, segment_volume

__all__ = [
    "TASKS",
    "Classification",
    "Evaluation",
    "Guess",
    "MaskEvaluation",
    "MusicAnalysis",
    "Restored",
    "Samples",
    "Segmentation",
    "Segments",
    "Task",
    "Tiling",
    "Upsampled",
    "VolumeSegmentation",
    "analyze",
    "classify",
    "classify_video",
    "decode_video",
    "evaluate",
    "evaluate_masks",
    "find_segments",
    "plan_decoding",
    "read_latents",
    "restore",
    "sample",
    "segment",
    "segment_volume",
    "task_of",
    "upsample_features",
]


def task_of(record: Record) -> Task:
    """What a record's model is for."""
    return find_task(ARCHITECTURES[record.architecture].TASK)
