"""A run of two epochs on however many ranks there are: whole, cut off after the first, or going on from there."""

import contextlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from fastdef import distributed
from fastdef.data import Dataset
from fastdef.nn import build, parse_architecture
from fastdef.training import TrainConfig, train_smoothing


class Cut(Exception):
    pass


def data(count, seed):
    pixels = torch.randint(0, 256, (count, 1, 12, 12), generator=torch.Generator().manual_seed(seed))
    return Dataset(pixels.to(torch.uint8), torch.arange(count) % 10, tuple("abcdefghij"), "noise", "fit")


def train(folder, *, batch=8, seed=0, cut=False, resume=False):
    def progress(epoch, steps, figures):
        if cut and epoch == 1:
            raise Cut

    torch.manual_seed(distributed.rank())  # weights that differ, until the run makes them those of the first
    model = build(parse_architecture("wrn-10-1", in_channels=1))
    config = TrainConfig(epochs=2, batch_size=batch, lr=0.05, ema=0.5)
    sets = data(32, seed), data(16, 1)
    return train_smoothing(model, *sets, config, folder, delta=1e-4, resume=resume, progress=progress)


def refusal(folder, **wrong):
    try:
        train(folder, **wrong)
    except ValueError as error:
        told = distributed.all_gather_object(str(error))
        assert told[0] == told[1]
        return error


if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    if mode == "cut":
        with contextlib.suppress(Cut):
            train(folder, cut=True)
    elif mode == "refused":
        wrongs = {"batch": 7}, {"resume": True}, {"seed": distributed.rank()}
        sys.stdout.writelines(f"{refusal(folder, **wrong)}\n" for wrong in wrongs)
    else:
        figures = train(folder, resume=mode == "resume")
        assert all(other == figures for other in distributed.all_gather_object(figures))
    dist.destroy_process_group()
