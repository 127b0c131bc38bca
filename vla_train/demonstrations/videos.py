"""Frames of an mp4 file: datasets of others may store pictures so. Ours never do: compression changes them.

Decoded by the ffmpeg that comes with imageio, in a process per call: an episode at a time, not a frame.
"""

from pathlib import Path

import numpy as np

_ROUNDING = 0.05
"""Of a rate that a video's header says: its times may be whole milliseconds."""


def decode_video(file: Path, *, begin_s: float, num_frames: int, fps: float) -> np.ndarray:
    """(T, H, W, 3) uint8.

    Args:
        file: The video.
        begin_s: Time of the first frame in the file, in seconds.
        num_frames: T.
        fps: Frames per second.

    Raises:
        ValueError: The file is damaged, of another rate, or ends before.
    """
    import imageio_ffmpeg

    seek = ["-ss", f"{max(begin_s - 0.5 / fps, 0):.6f}"]  # between two frames: rounding cannot take the wrong one
    # Frames as they are stored: ffmpeg would repeat some and leave others out, where their times are not on its grid.
    as_stored = ["-fps_mode", "passthrough", "-frames:v", str(num_frames)]
    reader = imageio_ffmpeg.read_frames(str(file), input_params=seek, output_params=as_stored)
    try:
        found = next(reader)
        width, height = found["size"]
        frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    except (OSError, RuntimeError, StopIteration, ValueError) as error:
        raise ValueError(f"{file} is no video, or damaged ({str(error).partition(' ===')[0]})") from None
    finally:
        reader.close()
    own_fps = found["fps"] or fps  # 0 where it does not say
    if abs(own_fps - fps) > _ROUNDING * fps:
        raise ValueError(f"{file} has {own_fps:g} frames per second, where meta/info.json says {fps:g}")
    if len(frames) != num_frames:
        raise ValueError(f"{file} has {len(frames)} frames after {begin_s:.2f} s, not {num_frames}: it is half-written")
    return np.stack(frames)
