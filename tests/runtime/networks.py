"""Small networks of every kind that people bring; the first child is what is smoothed."""

import random

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.expand(functional.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(weight, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return functional.conv2d(x, weight, self.bias, padding=1)


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.attend = nn.MultiheadAttention(channels, 2, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attend(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)


class Flattened(nn.Module):
    """A sum by rows, with sizes that torch infers and a batch size that it does not."""

    def forward(self, x):
        rows = x.reshape(2 * len(x), -1)
        return x * rows.sigmoid().view(len(x), -1).mean(1).view(-1, 1, 1, 1)


class NoGradMean(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            mean = x.mean((2, 3), keepdim=True)
        return x - mean


class NumpyMean(nn.Module):
    def forward(self, x):
        return x - 0.5 * torch.from_numpy(x.detach().cpu().numpy().mean((2, 3), keepdims=True))


class HalvedGradient(nn.Module):
    def forward(self, x):
        y = x * 1.0
        if y.requires_grad:
            y.register_hook(lambda gradient: 0.5 * gradient)
        return y


class Branching(nn.Module):
    def forward(self, x):
        return torch.cat([2 * one if float(one.mean()) > 0 else -one for one in x.split(1)])


def network(*layers, channels=8):
    """The layers between two convolutions, and a head."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *layers, nn.Conv2d(channels, channels, 3, padding=1))
    return nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)).eval()


def normed_first():
    torch.manual_seed(0)
    stem = nn.Sequential(nn.GroupNorm(1, 3), nn.Conv2d(3, 8, 3, padding=1))
    return nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()


def flat():
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Flatten(), nn.Linear(432, 64))
    return nn.Sequential(stem, nn.ReLU(), nn.Linear(64, 10)).eval()


def conv(kind, **options):
    return kind(8, 8, 3, padding=1, **options)


TRACED = {
    "batch norm": lambda: network(nn.BatchNorm2d(8), nn.ReLU()),
    "group norm of one group": normed_first,
    "group norm": lambda: network(nn.GroupNorm(4, 8), nn.SiLU()),
    "instance norm": lambda: network(nn.InstanceNorm2d(8, affine=True), nn.GELU()),
    "instance norm with statistics": lambda: network(nn.InstanceNorm2d(8, track_running_stats=True)),
    "layer norm": lambda: network(nn.LayerNorm([8, 12, 12])),
    "squeeze and excite": lambda: network(SqueezeExcite(8), nn.Hardswish()),
    "standardized weights": lambda: network(StandardizedConv(8, 8, 3)),
    "weight norm": lambda: network(parametrizations.weight_norm(conv(nn.Conv2d)), nn.ReLU()),
    "spectral norm": lambda: network(parametrizations.spectral_norm(conv(nn.Conv2d)), nn.ReLU()),
    "attention": lambda: network(Attention(8)),
    "depthwise, strided": lambda: network(nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.Mish()),
    "depthwise between convolutions": lambda: network(nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)),
    "dilated": lambda: network(nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.ELU()),
    "pooling": lambda: network(nn.MaxPool2d(2), nn.LeakyReLU()),
    "transposed": lambda: network(nn.ConvTranspose2d(8, 8, 3, stride=2)),
    "prelu": lambda: network(nn.PReLU(8)),
    "upsampling": lambda: network(nn.Upsample(scale_factor=2, mode="bilinear")),
    "flat and linear": flat,
    "sizes that are inferred": lambda: network(Flattened()),
}
FALLS_BACK = {
    "a mean without its gradient": lambda: network(NoGradMean()),
    "a mean by numpy": lambda: network(NumpyMean()),
    "a hook on a tensor": lambda: network(HalvedGradient()),
    "a branch by value": lambda: network(Branching()),
}
_LAYERS = [
    lambda c: nn.BatchNorm2d(c),
    lambda c: nn.GroupNorm(1, c),
    lambda c: nn.GroupNorm(2, c),
    lambda c: nn.InstanceNorm2d(c, affine=True),
    lambda c: nn.ReLU(),
    lambda c: nn.SiLU(),
    lambda c: nn.GELU(),
    lambda c: nn.Softplus(),
    lambda c: nn.Hardswish(),
    lambda c: nn.AvgPool2d(3, stride=1, padding=1),
    lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c),
    lambda c: nn.Conv2d(c, c, 1),
    lambda c: nn.Conv2d(c, c, 3, padding=2, dilation=2, bias=False),
    lambda c: parametrizations.weight_norm(nn.Conv2d(c, c, 3, padding=1)),
    lambda c: parametrizations.spectral_norm(nn.Conv2d(c, c, 3, padding=1)),
    lambda c: SqueezeExcite(c),
    lambda c: Attention(c),
    lambda c: NoGradMean(),
    lambda c: HalvedGradient(),
    lambda c: nn.Upsample(scale_factor=2),
]


def random_network(seed):
    """A stem of up to five layers in a random order, its norms with statistics of their own; and its precision."""
    choose = random.Random(seed)
    channels, dtype = choose.choice([4, 6, 8]), choose.choice([torch.float32, torch.float64])
    model = network(*(choose.choice(_LAYERS)(channels) for _ in range(choose.randint(1, 5))), channels=channels)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.to(dtype), dtype
