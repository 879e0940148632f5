"""The order of the data: block number = f(seed, position), in constant memory, whatever the number of ranks.

A keyed Feistel network permutes the numbers below a power of 4; walking its cycles until the value is below the
number of blocks makes a permutation of the blocks (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

ROUNDS = 6
WORD = (1 << 64) - 1


def shuffled(seed: int, position: int, num_blocks: int) -> int:
    """Return the block at a position of the endless shuffled order; each epoch is a new permutation.

    Args:
        seed: Not negative.
        position: Sequences before this one since step 0.
        num_blocks: At least 1.
    """
    epoch, value = divmod(position, num_blocks)
    key = mix(mix(seed) ^ epoch)
    half_bits = max(1, ((num_blocks - 1).bit_length() + 1) // 2)
    while True:
        value = _permute(key, value, half_bits)
        if value < num_blocks:
            return value


def mix(value: int) -> int:
    """Spread a number over 64 bits (the finaliser of splitmix64; Steele, Lea and Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & WORD
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & WORD
    return value ^ (value >> 31)


def _permute(key: int, value: int, half_bits: int) -> int:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (mix(key ^ (number << 56) ^ right) & mask)
    return left << half_bits | right
