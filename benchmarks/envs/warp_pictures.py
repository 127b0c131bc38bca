"""The picture of docs/warp.md: OpenGL beside Warp, one task of each suite.

    python -m benchmarks.envs.warp_pictures

Each row: OpenGL, Warp at quality "match", Warp at quality "fast"; with the PSNR of Warp's in dB.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.parity.images import psnr
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.recent_scenes import shared_scene
from vla_envs.vector.cameras import drawn_cameras
from vla_envs.vector.engine import Engine
from vla_envs.vector.mujoco_engine import MujocoEngine
from vla_envs.warp.device import WarpDevice
from vla_envs.warp.engine import WarpEngine

TASKS = (("libero_spatial", 0), ("libero_object", 0), ("libero_goal", 0), ("libero_10", 2), ("libero_90", 33))
SIZE, CAPTION, COLOURS = 192, 14, 128
CAMERAS = drawn_cameras(("agentview",), image_size=SIZE)
FILE = Path("docs/warp.png")


def picture(engine: Engine, scene: LiberoEngineScene) -> np.ndarray:
    """(SIZE, SIZE, 3) uint8 of the first initial state, as observed; closes the engine."""
    engine.begin([0], [scene], [scene.scene.init_states[0]])
    engine.draw([0])
    drawn = engine.pictures()["agentview"][0]
    engine.close()
    return np.asarray(drawn)


def main() -> None:
    page = Image.new("RGB", (3 * SIZE, len(TASKS) * (SIZE + CAPTION)), "white")
    write = ImageDraw.Draw(page)
    for row, (suite, task_id) in enumerate(TASKS):
        scene, top, shown = shared_scene(suite, task_id, "full", None), row * (SIZE + CAPTION), []
        shown.append(picture(MujocoEngine(1, cameras=CAMERAS), scene))
        for quality in ("match", "fast"):
            device = WarpDevice("auto")
            warp = WarpEngine(1, cameras=CAMERAS, quality=quality, device=device, tensors=False)
            shown.append(picture(warp, scene))
        for column, (name, drawn) in enumerate(zip(("OpenGL", "match", "fast"), shown, strict=True)):
            caption = f"{suite} {task_id}" if column == 0 else f"{name}: {psnr(shown[0], drawn):.1f} dB"
            write.text((column * SIZE + 2, top + 1), caption, fill="black")
            page.paste(Image.fromarray(np.ascontiguousarray(drawn[:, ::-1])), (column * SIZE, top + CAPTION))
    page.quantize(COLOURS).save(FILE, optimize=True)
    print(f"written: {FILE} ({FILE.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
