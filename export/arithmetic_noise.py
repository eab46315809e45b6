"""The defense's noise in float32 alone, to the bit: what every engine has, those too that narrow int64 to 32 bits.

:func:`fastdef.defense.noise.uniform_noise` needs 64-bit integers, shifts and exclusive-or. OpenVINO, CoreML, DirectML
and WebGPU compute int64 in 32 bits, TensorRT has no exclusive-or, and integer division is often a rounded one. This is
the same Philox4x32-10 on words of four bytes, each byte a float32. No intermediate passes 2**24, so every sum, product
and floor is exact, in any order and with any fusion. The exclusive-or is looked up in base 16.
"""

import torch
from torch import Tensor, nn

from fastdef.defense import MULTIPLIERS, ROUNDS, WEYL

_BYTES = 4  # of a word
_COLUMNS = 2 * _BYTES - 1  # of a product of two words, before its carries


class ArithmeticNoise(nn.Module):
    """What ``uniform_noise`` returns for each image and outer loop.

    Args:
        shape: (C, H, W) of an image.
        sigma: half width of the noise.
        loops: outer loops, R.
    """

    table: Tensor
    counters: Tensor
    loops: Tensor
    weyl: Tensor
    multipliers: Tensor

    def __init__(self, shape: tuple[int, ...], *, sigma: float, loops: int) -> None:
        super().__init__()
        self.shape = shape
        self.sigma = sigma
        self.count = shape[0] * shape[1] * shape[2]
        self.blocks = (self.count + 3) // 4  # Philox makes four words a counter
        digit = torch.arange(16)
        self.register_buffer("table", (digit[:, None, None] ^ digit[:, None] ^ digit).view(-1, 1).float())
        self.register_buffer("counters", _bytes_of(torch.arange(self.blocks)))
        self.register_buffer("loops", _bytes_of(torch.arange(loops)))
        rounds = torch.arange(ROUNDS)[:, None] * torch.tensor(WEYL)
        self.register_buffer("weyl", _bytes_of(rounds))
        self.register_buffer("multipliers", _multiplication_matrix())

    def forward(self, ids: Tensor, seed: Tensor) -> Tensor:
        """(N, 4) int32 each, see :func:`limbs` -> (N, R, C, H, W) float32."""
        ids, seed = _bytes_of_limbs(ids), _bytes_of_limbs(seed)
        keys = _carried(seed[:, None] + self.weyl)[..., :_BYTES]  # (N, rounds, 2, 4)
        words = self._philox(*self._counter(ids), keys)
        bits = words[..., 1:2] + words[..., 2:3] * 2.0**8 + words[..., 3:] * 2.0**16  # the upper 24
        # A maximum of what is positive changes nothing. It keeps engines from fusing what PyTorch rounds at each step.
        centered = (bits.flatten(2)[..., : self.count] + 0.5).clamp_min(0.0)
        scaled = (centered * 2.0**-24 * (2 * self.sigma)).clamp_min(0.0)
        return (scaled - self.sigma).unflatten(2, self.shape)

    def _counter(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The words 0 and 2, and the words 1 and 3, of each image, loop and block: (N, R, blocks, 2, 4) each."""
        size = (ids.shape[0], self.loops.shape[0], self.blocks, _BYTES)
        block = self.counters.expand(size)
        low, high = (ids[:, None, None, word].expand(size) for word in range(2))
        loop = self.loops[:, None].expand(size)
        return torch.stack([block, high], dim=3), torch.stack([low, loop], dim=3)

    def _philox(self, even: Tensor, odd: Tensor, keys: Tensor) -> Tensor:
        """-> (N, R, blocks, 4 words, 4 bytes)."""
        for key in keys[:, :, None, None].unbind(1):
            columns = (even.flatten(3) @ self.multipliers).unflatten(3, (2, _COLUMNS))
            product = _carried(columns)
            even, odd = self._exclusive_or(product[..., _BYTES:], odd, key), product[..., :_BYTES]
        return torch.stack([even, odd], dim=4).flatten(3, 4)

    def _exclusive_or(self, *words: Tensor) -> Tensor:
        """Of three words, by the two digits of their bytes."""
        upper = [torch.floor(word * 2.0**-4) for word in words]
        lower = [word - high * 16.0 for word, high in zip(words, upper, strict=True)]
        return self._look_up(upper) * 16.0 + self._look_up(lower)

    def _look_up(self, digits: list[Tensor]) -> Tensor:
        place = digits[0] + digits[1] * 16.0 + digits[2] * 256.0
        return nn.functional.embedding(place.to(torch.int32), self.table)[..., 0]


def limbs(values: Tensor) -> Tensor:
    """(N,) int64 from 0 up -> (N, 4) int32, 16 bits each, the lowest first: how exported files take ids and seeds."""
    return torch.stack([values >> 16 * place & 0xFFFF for place in range(4)], dim=-1).to(torch.int32)


def _bytes_of_limbs(values: Tensor) -> Tensor:
    """(N, 4) int32 limbs -> (N, 2 words, 4 bytes) float32."""
    limb = values.to(torch.float32)[..., None]
    high = torch.floor(limb * 2.0**-8)
    return torch.cat([limb - high * 256.0, high], dim=-1).unflatten(1, (2, 2)).flatten(2)


def _bytes_of(words: Tensor) -> Tensor:
    """Int64 words, of which the lower 32 bits count -> float32 bytes in a new last dimension."""
    return torch.stack([words >> 8 * place & 0xFF for place in range(_BYTES)], dim=-1).float()


def _multiplication_matrix() -> Tensor:
    """(8, 14): the bytes of words 0 and 2 to the columns of their products, that of word 2 first."""
    matrix = torch.zeros(2, _BYTES, 2, _COLUMNS)
    for word, digits in enumerate(_bytes_of(torch.tensor(MULTIPLIERS))):
        for place in range(_BYTES):
            matrix[word, place, 1 - word, place : place + _BYTES] = digits
    return matrix.flatten(2).flatten(0, 1)


def _carried(columns: Tensor) -> Tensor:
    """Columns of weight 256**k -> bytes, one more than there were columns."""
    digits, carry = [], torch.zeros_like(columns[..., :1])
    for column in columns.split(1, dim=-1):
        total = column + carry
        carry = torch.floor(total * 2.0**-8)
        digits.append(total - carry * 256.0)
    return torch.cat([*digits, carry], dim=-1)
