"""Engine processes end with the process that started them.

vLLM runs its engine in child processes. When their parent is killed outright (a
killed driver takes its Ray workers along), vLLM leaves them behind with all their
memory. vLLM loads this module into each of its processes as a plug-in (entry point
`vllm.general_plugins`); it does nothing unless our engine asked for it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading

#: Set in the environment of the engines that raysys starts.
EXIT_WITH_PARENT = "RAYSYS_EXIT_WITH_PARENT"


def exit_with_parent() -> None:
    """End this process as soon as its parent is gone, however the parent ended."""
    parent = multiprocessing.parent_process()
    if os.environ.get(EXIT_WITH_PARENT) != "1" or parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="raysys-exit-with-parent", daemon=True).start()
