"""Processes forked by a script that has imported what takes longer than it runs: alone, or as ranks of one training."""

import os
import socket
import sys
import traceback


def forked(count, run):
    """Fork `run(rank)` for each of so many processes that train together, each the leader of its group; their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [_forked(rank, count, port, run) for rank in range(count)]


def _forked(rank, count, port, run):
    if child := os.fork():
        return child
    os.setpgid(0, 0)
    if count > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update(
            {name: str(value) for name, value in ranks.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=port
        )
    failed = True
    try:
        run(rank)
        failed = False
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(failed)
