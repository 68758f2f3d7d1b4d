# SPDX-License-Identifier: GPL-2.0-only
"""include/kmm/abi.h: what compiled plugins share with the core."""
from __future__ import annotations

import hashlib
import pathlib
import re

INCLUDE = pathlib.Path(__file__).resolve().parents[1] / "pykmm_ext" / "include"
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
#: They say themselves what a plugin knows of them (`size`), or are the stamp.
OWN_SIZE = {"kmm/strategy.h", "kmm/arch.h", "kmm/abi.h"}


def included(name: str, found: dict[str, str]) -> None:
    """The text of a header, and of what it includes, without comments and layout."""
    text = COMMENT.sub(" ", (INCLUDE / name).read_text("utf-8"))
    found[name] = " ".join(text.split())
    for other in re.findall(r'#include "(kmm/[^"]+)"', text):
        if other not in found:
            included(other, found)


def test_the_digest_of_the_headers() -> None:
    """A plugin that was compiled against headers in which two members have changed places must be refused."""
    found: dict[str, str] = {}
    included("kmm/strategy.h", found)
    included("kmm/arch.h", found)
    assert OWN_SIZE < set(found)
    text = "\n".join(f"{name} {found[name]}" for name in sorted(set(found) - OWN_SIZE))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    stamp = (INCLUDE / "kmm" / "abi.h").read_text("utf-8")
    assert f"#define KMM_ABI_DIGEST 0x{digest}u\n" in stamp, f"abi.h: KMM_ABI_DIGEST has to be 0x{digest}u now"
