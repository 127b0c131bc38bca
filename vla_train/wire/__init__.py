"""Protocols between a policy's server and who plays: what goes over the socket, for both ends.

`serving` is the one end and `policy.remote` the other. LIBERO's clients of both protocols send what our envs observe: images
rotated by 180 degrees, the state with the signs of robosuite's rotations, and a gripper that -1 opens and +1 closes. `vla_eval`
and `openpi` say under which names, and what else differs.
"""
