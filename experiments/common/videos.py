"""Films: captions, an animated GIF for pages and TensorBoard, and an MP4 for everything else."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Frame = npt.NDArray[np.uint8]
"""A picture `[height, width, 3]`."""

CAPTION, BLOCK, COLORS = 34, 16, 64  # pixels; what video codecs can divide by; of a GIF
MOST_FRAMES_A_SECOND = 50  # browsers play a GIF with shorter pauses slowly


def with_caption(frame: Frame, lines: Sequence[str]) -> Frame:
    """The picture under a white band with at most two lines of text."""
    band = Image.new("RGB", (frame.shape[1], CAPTION), "white")
    draw = ImageDraw.Draw(band)
    for number, line in enumerate(lines[:2]):
        draw.text((4, 3 + 15 * number), line, fill="black")
    return np.concatenate([np.asarray(band), frame])


def gif(frames: Sequence[Frame], frames_per_second: float) -> bytes:
    """The pictures as an animated GIF that repeats."""
    images = [Image.fromarray(frame).quantize(COLORS) for frame in frames]
    file, pause = io.BytesIO(), round(1000 / min(frames_per_second, MOST_FRAMES_A_SECOND))
    images[0].save(file, format="GIF", save_all=True, append_images=images[1:], duration=pause, loop=0)
    return file.getvalue()


def mp4(frames: Sequence[Frame], frames_per_second: float) -> bytes:
    """The pictures as an MP4 (H.264), on a white border up to sides that codecs can divide.

    Raises:
        ValueError: when `imageio-ffmpeg` is not installed.
    """
    video = import_imageio()
    height, width = (-(-side // BLOCK) * BLOCK for side in frames[0].shape[:2])
    canvas = np.full((len(frames), height, width, 3), 255, np.uint8)
    canvas[:, : frames[0].shape[0], : frames[0].shape[1]] = frames
    encoded: bytes = video.imwrite("<bytes>", canvas, extension=".mp4", plugin="FFMPEG", fps=frames_per_second)
    return encoded


def import_imageio() -> Any:
    """The module `imageio.v3`, once it is sure that it can write an MP4.

    Raises:
        ValueError: when `imageio-ffmpeg` is not installed.
    """
    try:
        import imageio.v3
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ValueError(f'mp4 needs the extra video: pip install "metarl-torch[video]" ({error})') from None
    return imageio.v3
