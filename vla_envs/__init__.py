"""Robot-manipulation benchmarks as Gymnasium vector environments.

Importing this package registers its ids with Gymnasium (`Libero-v0`, `Isaac-v0` and one per LIBERO suite). It starts no
simulator and loads nothing heavy. Where the package is installed, the import is not even needed.
"""

from vla_envs import _gymnasium_plugin

_gymnasium_plugin.install()
