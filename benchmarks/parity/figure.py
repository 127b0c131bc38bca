"""Draws docs/images/detail.png: six scenes at full and at fast detail, side by side.

python -m benchmarks.parity.figure
"""

import os
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.parity.images import open_engine, pictures, psnr
from vla_envs.libero.cache import load_scene
from vla_envs.libero.engine_scene import LiberoEngineScene

FILE = Path(__file__).resolve().parents[2] / "docs" / "images" / "detail.png"
SCENES = [
    ("libero_spatial", 0),
    ("libero_object", 0),
    ("libero_goal", 3),
    ("libero_10", 4),
    ("libero_10", 9),
    ("libero_90", 86),
]
SIZE, GAP, CAPTION = 256, 12, 20
LEVELS_BETWEEN = 4
"""Colours are rounded down to every fourth of 256 levels, which halves the file."""


def main() -> None:
    """Draw, and write the file."""
    pairs = [(suite, task_id, *drawn(suite, task_id)) for suite, task_id in SCENES]
    width, height = 2 * (2 * SIZE + GAP) + GAP, (len(pairs) // 2) * (SIZE + CAPTION + GAP) - GAP
    page = Image.new("RGB", (width, height), "white")
    write = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=13)
    for index, (suite, task_id, full, fast) in enumerate(pairs):
        left, top = (index % 2) * (2 * SIZE + 2 * GAP), (index // 2) * (SIZE + CAPTION + GAP)
        write.text((left, top), f"{suite} {task_id}: full | fast ({psnr(full, fast):.1f} dB)", fill="black", font=font)
        page.paste(Image.fromarray(full), (left, top + CAPTION))
        page.paste(Image.fromarray(fast), (left + SIZE + 2, top + CAPTION))
    FILE.parent.mkdir(parents=True, exist_ok=True)
    page.point(lambda level: level - level % LEVELS_BETWEEN).save(FILE, optimize=True)
    print(f"written: {FILE} ({FILE.stat().st_size / 1000:.0f} kB)")


def drawn(suite: str, task_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(SIZE, SIZE, 3) uint8 twice, upright: the first initial state at full and at fast detail."""
    both = []
    with open_engine(SIZE) as engine:
        for detail in ("full", "fast"):
            scene = load_scene(suite, task_id, detail=detail)
            picture = pictures(engine, LiberoEngineScene(scene), scene.init_states[0])["agentview"]
            both.append(np.ascontiguousarray(picture[:, ::-1]))  # observations are mirrored
    return both[0], both[1]


if __name__ == "__main__":
    main()
