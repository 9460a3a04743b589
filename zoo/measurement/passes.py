"""Passes: how many images go through a model at once on a CPU, which beyond is busy with fresh pages of memory."""

TOGETHER = (8, 32)  # images in one pass, of large ones and of small ones:
PIXELS = 8 * 224 * 224  # about so many of one channel


def together(pixels: int) -> int:
    """How many images of so many pixels, in one channel, go through a model at once."""
    least, most = TOGETHER
    return max(least, min(most, PIXELS // pixels))


def pass_sizes(images: int, pixels: int) -> list[int]:
    """How many images each pass takes, as even as can be.

    Args:
        images: how many there are.
        pixels: of one image, in one channel.

    >>> pass_sizes(30, 224 * 224)
    [8, 8, 7, 7]
    """
    passes = -(-images // together(pixels))
    return [images // passes + (number < images % passes) for number in range(passes)]
