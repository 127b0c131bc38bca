"""How episodes begin: in one of the starts that were drawn and settled when the task was converted."""

from __future__ import annotations

import torch
from isaaclab.envs import ManagerBasedEnv
from isaaclab.managers import EventTermCfg, ManagerTermBase

from vla_envs.isaac.lab.task_file import load_task_file


class BeginAtRandomStart(ManagerTermBase):
    """Puts environments into starts: those that `env.episode_seeds` names where it is set, else drawn at random.

    Args:
        cfg: `params["task_file"]` is the path of the converted task.
        env: Has an asset for each of its parts.
    """

    def __init__(self, cfg: EventTermCfg, env: ManagerBasedEnv) -> None:
        super().__init__(cfg, env)
        task = load_task_file(cfg.params["task_file"])
        starts = task.starts

        def on_device(array):  # type: ignore[no-untyped-def]
            return torch.tensor(array, dtype=torch.float32, device=self.device)

        self._positions, self._speeds = on_device(starts.joint_positions), on_device(starts.joint_speeds)
        self._objects = on_device(starts.objects)
        """(S, O, 13)."""
        self._object_names = [part.name for part in task.parts if part.kind == "object"]
        self._joints: dict[str, tuple[list[int], slice]] = {}
        """Articulation -> its joints' ids, and their columns in the starts."""
        first = 0
        for part in task.parts:
            if part.joints:
                known = env.scene[part.name].joint_names
                columns = slice(first, first + len(part.joints))
                self._joints[part.name] = ([known.index(name) for name in part.joints], columns)
                first += len(part.joints)

    def __call__(self, env: ManagerBasedEnv, env_ids: torch.Tensor | slice, task_file: str) -> None:
        """Begin anew in `env_ids`."""
        everyone = torch.arange(env.num_envs, dtype=torch.int32, device=self.device)
        env_ids = everyone[env_ids] if isinstance(env_ids, slice) else env_ids
        seeds: torch.Tensor | None = getattr(env, "episode_seeds", None)
        if seeds is None:
            drawn = torch.randint(len(self._objects), (len(env_ids),), device=self.device)
        else:
            drawn = seeds[env_ids] % len(self._objects)
        origins = env.scene.env_origins[env_ids]
        for column, name in enumerate(self._object_names):
            state = self._objects[drawn, column].clone()
            state[:, :3] += origins
            env.scene[name].write_root_link_pose_to_sim_index(root_pose=state[:, :7].contiguous(), env_ids=env_ids)
            env.scene[name].write_root_link_velocity_to_sim_index(root_velocity=state[:, 7:].contiguous(), env_ids=env_ids)
        for name, (joint_ids, columns) in self._joints.items():
            positions, speeds = self._positions[drawn, columns], self._speeds[drawn, columns]
            asset = env.scene[name]
            asset.write_joint_position_to_sim_index(position=positions.contiguous(), joint_ids=joint_ids, env_ids=env_ids)
            asset.write_joint_velocity_to_sim_index(velocity=speeds.contiguous(), joint_ids=joint_ids, env_ids=env_ids)
