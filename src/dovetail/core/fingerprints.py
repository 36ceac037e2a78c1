"""Do two pictures look the same? A 64-bit perceptual hash, and a colour signature, since the hash is colour-blind."""

import numpy as np


def _dct(length: int) -> np.ndarray:
    """Type-II discrete cosine transform as a matrix (length, length)."""
    k, n = np.arange(length)[:, None], np.arange(length)[None, :]
    return np.cos(np.pi * k * (2 * n + 1) / (2 * length))


_DCT32 = _dct(32)


def perceptual_hash(grey: np.ndarray) -> str:
    """16 hexadecimal digits from a 32x32 grey picture: signs of the low frequencies around their median (Zauner 2010)."""
    low = (_DCT32 @ grey.astype(np.float64) @ _DCT32.T)[:8, :8].ravel()
    bits = low > np.median(low[1:])
    return "".join(f"{int(''.join('1' if b else '0' for b in bits[i : i + 4]), 2):x}" for i in range(0, 64, 4))


def colour_signature(small: np.ndarray) -> str:
    """Hexadecimal of a 4x4 RGB thumbnail (uint8)."""
    return small.astype(np.uint8).tobytes().hex()


def hamming(a: str, b: str) -> int:
    """Number of differing bits of two hexadecimal hashes."""
    return (int(a, 16) ^ int(b, 16)).bit_count()


def colour_distance(a: str, b: str) -> float:
    """Mean absolute difference of two colour signatures, in levels of 255."""
    first, second = (np.frombuffer(bytes.fromhex(x), np.uint8).astype(np.int16) for x in (a, b))
    return float(np.abs(first - second).mean())


def near_duplicates(hashes: list[str], colours: list[str], bits: int, levels: float = 12.0) -> list[tuple[int, int]]:
    """Index pairs whose hashes differ in at most `bits` and whose colours differ by at most `levels` on average.

    All pairs are compared, 64 bits at a time; good to some 50,000 pictures.
    """
    values = np.array([int(h, 16) for h in hashes], dtype=np.uint64)
    found = []
    for i in range(len(values) - 1):
        close = np.flatnonzero(np.bitwise_count(values[i] ^ values[i + 1 :]) <= bits)
        found += [(i, i + 1 + int(j)) for j in close if colour_distance(colours[i], colours[i + 1 + int(j)]) <= levels]
    return found
