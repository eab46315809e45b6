"""The defense's noise in additions, multiplications, divisions and a table: what every engine has.

:func:`fastdef.defense.noise.uniform_noise` needs shifts and exclusive-or, which ONNX has and TensorRT has not. This is
the same Philox4x32-10, word for word and bit for bit. The exclusive-or of three words is looked up digit by digit, in
base 16; a product of two 32-bit words is made of halves, so that nothing passes 2**63.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fastdef.defense import MULTIPLIERS, ROUNDS, WEYL

_WORD, _HALF = 1 << 32, 1 << 16
_DIGITS = 8  # of 4 bits


class ArithmeticNoise(nn.Module):
    """What ``uniform_noise`` returns, from ids, outer loops and a seed that are not negative.

    Args:
        shape: (C, H, W) of an image.
        sigma: half width of the noise.
    """

    table: Tensor
    powers: Tensor

    def __init__(self, shape: tuple[int, ...], *, sigma: float) -> None:
        super().__init__()
        self.shape = shape
        self.sigma = sigma
        digit = torch.arange(16)
        self.register_buffer("table", (digit[:, None, None] ^ digit[:, None] ^ digit).view(-1, 1))
        self.register_buffer("powers", 16 ** torch.arange(_DIGITS))

    def forward(self, ids: Tensor, loops: Tensor, seed: Tensor) -> Tensor:
        """(N,) int64 each -> (N, C, H, W) float32."""
        count = self.shape[0] * self.shape[1] * self.shape[2]
        blocks = (count + 3) // 4
        columns = [torch.remainder(ids, _WORD), quotient(ids, _WORD), loops]
        counter = torch.arange(blocks, device=ids.device).expand(ids.shape[0], -1)
        words = self._philox(
            [counter, *(column[:, None].expand(-1, blocks) for column in columns)],
            key=(torch.remainder(seed, _WORD)[:, None], quotient(seed, _WORD)[:, None]),
        )
        bits = quotient(torch.stack(words, dim=-1).flatten(1)[:, :count], 256)
        unit = (bits.to(torch.float32) + 0.5) * 2.0**-24
        return (unit * (2 * self.sigma) - self.sigma).view(-1, *self.shape)

    def _philox(self, counter: list[Tensor], *, key: tuple[Tensor, Tensor]) -> list[Tensor]:
        c0, c1, c2, c3 = counter
        k0, k1 = key
        for _ in range(ROUNDS):
            high0, low0 = _product(c0, MULTIPLIERS[0])
            high1, low1 = _product(c2, MULTIPLIERS[1])
            c0, c1, c2, c3 = self._exclusive_or(high1, c1, k0), low1, self._exclusive_or(high0, c3, k1), low0
            k0, k1 = torch.remainder(k0 + WEYL[0], _WORD), torch.remainder(k1 + WEYL[1], _WORD)
        return [c0, c1, c2, c3]

    def _exclusive_or(self, *words: Tensor) -> Tensor:
        """Of three words, by their digits."""
        place = sum(torch.remainder(_quotient(w[..., None], self.powers), 16) * 16**i for i, w in enumerate(words))
        return (nn.functional.embedding(place, self.table)[..., 0] * self.powers).sum(-1)


def quotient(value: Tensor, unit: int) -> Tensor:
    """Value // unit of what is not negative; one ``Div`` in ONNX, where torch's own divisions become many nodes."""
    return _quotient(value, torch.tensor(unit, device=value.device))


@torch.library.custom_op("fastdef::quotient", mutates_args=())
def _quotient(value: Tensor, unit: Tensor) -> Tensor:
    return torch.div(value, unit, rounding_mode="trunc")


@_quotient.register_fake
def _(value: Tensor, unit: Tensor) -> Tensor:
    return value.new_empty(torch.broadcast_shapes(value.shape, unit.shape))


def translations() -> dict[Any, Any]:
    """How the exporter writes ``quotient``."""
    from onnxscript import opset20

    return {torch.ops.fastdef.quotient.default: lambda value, unit: opset20.Div(value, unit)}


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """The upper and lower 32 bits of word * multiplier, both of 32 bits."""
    high, low = quotient(word, _HALF), torch.remainder(word, _HALF) * multiplier
    middle = high * multiplier + quotient(low, _HALF)
    return quotient(middle, _HALF), torch.remainder(middle, _HALF) * _HALF + torch.remainder(low, _HALF)
