"""Becomes another program that dies with its parent.

    python -I -S launch.py --signal SIGKILL --parent PID [--uid N --gid N] -- command...

A process of its own instead of subprocess's `preexec_fn`, which runs Python between fork and exec: with grpc in the
parent that can deadlock. It imports the standard library only, so that it costs a few milliseconds, and it execs, so
that the pid the parent knows is the pid of the program.

Linux sends the death signal when the *thread* that forked ends, not the process: start children from the main thread.
"""

import argparse
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set this process up as the options say and exec the command."""
    options = _options()
    # Ctrl-C reaches the whole foreground group; the engines have to outlive the workers that drain into them.
    os.setsid()
    if options.gid is not None:
        os.setgroups([])
        os.setgid(options.gid)
    if options.uid is not None:
        os.setuid(options.uid)
    if sys.platform == "linux":
        # After the change of user, which clears it.
        _die_with_parent(signal.Signals[options.signal])
        if os.getppid() != options.parent:
            sys.exit(f"launch.py: parent {options.parent} is gone, not starting {options.command[0]}")
    try:
        os.execvp(options.command[0], options.command)  # noqa: S606  (no shell is the point)
    except OSError as error:
        sys.exit(f"launch.py: cannot run {options.command[0]}: {error.strerror}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def _die_with_parent(death_signal: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        sys.exit(f"launch.py: prctl failed: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
