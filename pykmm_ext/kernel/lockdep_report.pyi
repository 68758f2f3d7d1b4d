# SPDX-License-Identifier: GPL-2.0-only
"""kernel/locking/lockdep_proc.c: what lockdep has found, as text and as JSON, and its graph from process to process."""
from typing import Any

def format_report(report: dict[str, Any]) -> str: ...
