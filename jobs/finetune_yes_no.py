"""Fine-tune the yes/no recommender, as a Ray job.

ray job submit --working-dir . -- python jobs/finetune_yes_no.py CONFIG [key=value ...]
joins the cluster that it runs on; started by hand, it starts Ray on this machine.
"""

import os
import sys

from raysys.cli import main

address = ["cluster.address=auto"] if "RAY_ADDRESS" in os.environ else []
sys.exit(main(["finetune", "yes-no", *sys.argv[1:], *address]))
