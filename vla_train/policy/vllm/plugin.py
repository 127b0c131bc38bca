"""Makes our model known to vLLM: called by `engine.py`, and by vLLM itself in any process of its own, through the entry point
`vllm.general_plugins` that the package declares."""

ARCHITECTURE = "SimpleVLAOFTForPooling"


def register() -> None:
    """Register the model; again does nothing."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"vla_train.policy.vllm.model:{ARCHITECTURE}")
