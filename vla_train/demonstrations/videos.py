"""Frames of an mp4 file: datasets of others may store pictures so. Ours never do: compression changes them.

Decoded by the ffmpeg that comes with imageio, in a process per call: an episode at a time, not a frame.
"""

from pathlib import Path

import numpy as np


def decode_video(file: Path, *, begin_s: float, num_frames: int, fps: float) -> np.ndarray:
    """(T, H, W, 3) uint8.

    Args:
        file: The video.
        begin_s: Time of the first frame in the file, in seconds.
        num_frames: T.
        fps: Frames per second.

    Raises:
        ValueError: The file is damaged, or ends before.
    """
    import imageio_ffmpeg

    seek = ["-ss", f"{max(begin_s - 0.5 / fps, 0):.6f}"]  # between two frames: rounding cannot take the wrong one
    reader = imageio_ffmpeg.read_frames(str(file), input_params=seek, output_params=["-frames:v", str(num_frames)])
    try:
        width, height = next(reader)["size"]
        frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    except (OSError, RuntimeError, StopIteration, ValueError) as error:
        raise ValueError(f"{file} is no video, or damaged ({str(error).partition(' ===')[0]})") from None
    finally:
        reader.close()
    if len(frames) != num_frames:
        raise ValueError(f"{file} has {len(frames)} frames after {begin_s:.2f} s, not {num_frames}: it is half-written")
    return np.stack(frames)
