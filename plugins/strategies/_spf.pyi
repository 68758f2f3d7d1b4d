# SPDX-License-Identifier: GPL-2.0-only
from pykmm_ext.strategy import Strategy

class SPF(Strategy): ...
