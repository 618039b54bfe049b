"""Write top-k lists, for `ray job submit --working-dir . -- python jobs/recommend.py CONFIG [key=value ...]`.

A submitted job joins the cluster it runs on; without one, Ray starts here.
"""

import os
import sys

from raysys.cli import main

address = ["cluster.address=auto"] if "RAY_ADDRESS" in os.environ else []
sys.exit(main(["recommend", *sys.argv[1:], *address]))
