"""The ids of this package's envs. Their classes are imported when an env is made."""

_LIBERO_SUITES = {
    "Libero-v0": "libero_spatial",
    "Libero-Spatial-v0": "libero_spatial",
    "Libero-Object-v0": "libero_object",
    "Libero-Goal-v0": "libero_goal",
    "Libero-10-v0": "libero_10",
    "Libero-90-v0": "libero_90",
}


def register_envs() -> None:
    """Add the ids to Gymnasium's registry; ids that are there already are left alone."""
    from gymnasium.envs.registration import register, registry  # the one in use now, should gymnasium be imported anew

    for env_id, suite in _LIBERO_SUITES.items():
        if env_id not in registry:
            register(
                id=env_id,
                entry_point="vla_envs.libero.env:make_libero_env",
                vector_entry_point="vla_envs.libero.env:LiberoEnv",
                kwargs={"suite": suite},
            )
    if "Isaac-v0" not in registry:
        register(
            id="Isaac-v0",
            entry_point="vla_envs.isaac.env:make_isaac_env",
            vector_entry_point="vla_envs.isaac.env:IsaacEnv",
        )
