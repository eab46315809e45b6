"""Compiled steps against eager ones, on however many ranks there are; the batch norms talk inside the graph."""

import torch
import torch.distributed as dist
from steps import DATA, Doubles, network

from fastdef.losses import PGDAT
from fastdef.training import Branches, Smoothing, TrainConfig
from fastdef.training.trainer import Trainer


def weights(method, **options):
    trainer = Trainer(method, TrainConfig(batch_size=8, lr=0.05, **options))
    with method.running():
        for number, (images, labels) in enumerate(Doubles(DATA, 8).epoch(0)):
            trainer.step(images, labels, number)
    return torch.cat([weight.detach().flatten() for weight in method.model.parameters()])


if __name__ == "__main__":
    dist.init_process_group("gloo")
    smoothing = [Smoothing(network(), delta=1e-4) for _ in range(2)]
    torch.testing.assert_close(weights(smoothing[0], compile=True), weights(smoothing[1]), rtol=1e-5, atol=1e-6)
    branches = [Branches(network(2), PGDAT(), [0.0, 8 / 255], compile=compile) for compile in (True, False)]
    torch.testing.assert_close(weights(branches[0], compile=True), weights(branches[1]), rtol=1e-10, atol=1e-10)
    dist.destroy_process_group()
