"""python -m hybridrl.hosts.standins install | check | uninstall"""

import subprocess
import sys

from hybridrl.errors import HybridRLError
from hybridrl.hosts import standins

_PROBE = "import torchvision, sgl_kernel; print(sgl_kernel.__file__)"


def main(arguments: list[str]) -> int:
    actions = {"install": _install, "check": _check, "uninstall": _uninstall}
    if len(arguments) != 1 or arguments[0] not in actions:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        return actions[arguments[0]]()
    except HybridRLError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _install() -> int:
    print(f"stand-ins installed: {standins.install()}")
    return 0


def _check() -> int:
    if not standins.is_installed():
        print("stand-ins are not installed: run python -m hybridrl.hosts.standins install", file=sys.stderr)
        return 1
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True)
    if probe.returncode:
        print(f"stand-ins do not work:\n{probe.stderr.strip()}", file=sys.stderr)
        return 1
    print(f"stand-ins work: torchvision imports, sgl_kernel is {probe.stdout.strip()}")
    return 0


def _uninstall() -> int:
    print("stand-ins removed" if standins.uninstall() else "stand-ins were not installed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
