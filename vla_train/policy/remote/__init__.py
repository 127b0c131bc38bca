"""A policy that somebody else serves: `--policy.factory remote --policy.url ws://HOST:PORT`.

    rollout --B rows--> policy --one question per row, all in flight together--> slots --connection each--> server

Each slot of the envs has a connection, which is a session of its server: an episode's questions go through one, in their order.
"""
