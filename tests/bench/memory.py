"""Peak memory of a command: anonymous (its own) and of the mapped file, in MB.

    memory.py COMMAND [ARGUMENT...]

Reads /proc/PID/status every two milliseconds (Linux). Prints `anonymous A MB  file F MB`, the peaks of RssAnon and
RssFile, and passes on the command's exit status.
"""

import subprocess
import sys
import time


def sample(pid):
    """RssAnon and RssFile of a process in kB; None once it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as status:
            fields = dict(line.split(":", 1) for line in status)
        return tuple(int(fields[key].split()[0]) for key in ("RssAnon", "RssFile"))
    except (OSError, KeyError):
        return None


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
    anonymous = mapped = 0
    while process.poll() is None:
        found = sample(process.pid)
        if found:
            anonymous, mapped = max(anonymous, found[0]), max(mapped, found[1])
        time.sleep(0.002)
    print(f"anonymous {anonymous / 1000:.1f} MB  file {mapped / 1000:.1f} MB")
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
