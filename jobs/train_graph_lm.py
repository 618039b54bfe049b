"""Train the graph-attentive language model, as a Ray job.

ray job submit --working-dir . -- python jobs/train_graph_lm.py CONFIG [key=value ...]
joins the cluster that it runs on; started by hand, it starts Ray on this machine.
"""

import os
import sys

from raysys.cli import main

address = ["cluster.address=auto"] if "RAY_ADDRESS" in os.environ else []
sys.exit(main(["train", "graph-lm", *sys.argv[1:], *address]))
