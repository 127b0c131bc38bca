"""SimpleVLA-OFT sampled by vLLM: `--policy.factory vllm` (see docs/vllm.md).

policy.py   what the trainer has: PyTorch trains, vLLM decides      options.py  what can be refused before vLLM is imported
engine.py   a vLLM engine in this process                           model.py    the network as vLLM sees it
plugin.py   makes the network known to vLLM
"""
