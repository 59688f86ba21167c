"""Writes the small torch files beside it. Needs torch; the results are in the repository.

Made with torch 1.13.0 and NumPy 1.24: `python make_torch_files.py`.
"""

import argparse
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
FLOATS = ("float64", "float32", "float16", "bfloat16", "complex64")
DTYPES = (*FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool")


def tensors():
    """Every dtype, and views of one storage."""
    state = OrderedDict()
    for name in DTYPES:
        state[name] = (torch.arange(-3, 9).reshape(3, 4) * 0.5).to(getattr(torch, name))
    base = torch.arange(24.0)
    state["transposed"] = base.view(2, 3, 4).permute(2, 0, 1)
    state["slice"] = base[5:17:3]
    state["column"] = base.view(6, 4)[:, 1:2]
    state["expanded"] = base[3:5].expand(4, 2)
    state["overlapping"] = base.as_strided((5, 4), (1, 2), 2)
    state["scalar"] = base[7]
    state["empty"] = torch.empty(0, 3)
    state["parameter"] = nn.Parameter(base.view(4, 6))
    state["tied"] = state["parameter"]
    return state


def linear(seed):
    torch.manual_seed(seed)
    return nn.Linear(3, 2).state_dict()


def timm_checkpoint():
    """What timm's `CheckpointSaver` writes after training on several GPUs."""
    return {
        "epoch": 12,
        "arch": "nat_mini",
        "state_dict": OrderedDict(("module." + k, v) for k, v in linear(0).items()),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2, 3)}}, "param_groups": [{"lr": 0.1}]},
        "version": 2,
        "args": argparse.Namespace(model="nat_mini", lr=1e-3),
        "state_dict_ema": OrderedDict(("module." + k, v) for k, v in linear(1).items()),
        "metric": np.float64(81.8),
    }


def mmcv_checkpoint():
    """What mmcv writes: its `meta` holds objects of classes that nobody has installed."""
    module = types.ModuleType("mmcv_somewhere.config")
    sys.modules["mmcv_somewhere"] = sys.modules["mmcv_somewhere.config"] = module
    module.Config = type("Config", (dict,), {"__module__": "mmcv_somewhere.config"})
    config = module.Config(lr=0.1, steps=[1, 2])
    config.filename = "upernet.py"
    meta = {
        "CLASSES": ("wall", "building"),
        "PALETTE": np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8),
        "counts": defaultdict(int, wall=3),
        "cfg": config,
        "where": Path("/tmp/run"),
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
        "dtype": torch.float32,
    }
    return {"meta": meta, "state_dict": linear(2), "optimizer": None}


def main():
    torch.save(tensors(), HERE / "tensors.pth")
    torch.save(timm_checkpoint(), HERE / "timm.pth")
    torch.save(mmcv_checkpoint(), HERE / "mmcv.pth")
    torch.save({"model": linear(3), "matching_heuristics": True}, HERE / "detectron2.pth")
    torch.save(linear(0), HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.jit.script(nn.Linear(3, 2)).save(str(HERE / "torchscript.pt"))
    np.savez(HERE / "linear.npz", **{f"{i}.{k}": v for i in range(4) for k, v in linear(i).items()})


if __name__ == "__main__":
    main()
