"""Wiring is data: declared in ``objects``, applied by ``engine``, read back by ``inspect``.

The only part of terway that talks netlink.
"""
