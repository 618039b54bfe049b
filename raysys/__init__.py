"""raysys: language models and user-item graphs recommend together, on Ray.

From Python::

    import raysys

    run = raysys.run("configs/quickstart.toml")
    run.recommend("196", k=10)
"""

from raysys.api import Recommendation, Run, open_run, run
from raysys.version import VERSION as __version__

__all__ = ["Recommendation", "Run", "__version__", "open_run", "run"]
