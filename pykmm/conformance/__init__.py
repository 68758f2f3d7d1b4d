# SPDX-License-Identifier: GPL-2.0-only
"""The conformance kit. Its public names are those of :mod:`pykmm.testing`."""
