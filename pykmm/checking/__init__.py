# SPDX-License-Identifier: GPL-2.0-only
"""The front end of the check engine."""
