"""Try settings of a run on Ray Tune, as a Ray job.

ray job submit --working-dir . -- python jobs/tune.py CONFIG [key=value ...]
joins the cluster that it runs on; started by hand, it starts Ray on this machine.
"""

import os
import sys

from raysys.cli import main

address = ["cluster.address=auto"] if "RAY_ADDRESS" in os.environ else []
sys.exit(main(["tune", *sys.argv[1:], *address]))
