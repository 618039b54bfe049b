"""Methods side by side, as a Ray job.

ray job submit --working-dir . -- python jobs/compare.py CONFIG [key=value ...]
joins the cluster that it runs on; started by hand, it starts Ray on this machine.
"""

import os
import sys

from raysys.cli import main

address = ["cluster.address=auto"] if "RAY_ADDRESS" in os.environ else []
sys.exit(main(["compare", *sys.argv[1:], *address]))
