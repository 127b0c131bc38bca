"""Robot-manipulation benchmarks as Gymnasium vector environments.

Importing this package starts no simulator and loads nothing heavy: it only sees to it that Gymnasium knows the ids
(`Libero-v0`, `Isaac-v0` and one per LIBERO suite). Where it is installed, even that import is not needed.
"""

from vla_envs import _gymnasium_plugin

_gymnasium_plugin.install()
