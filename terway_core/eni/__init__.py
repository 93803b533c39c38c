"""The ENIs of one node and the addresses on them, kept warm for pods.

``pool`` gives out and takes back; ``line`` has those who wait, and ``shortage`` tells them why. ``planner``
decides what the cloud must be asked for, ``supplier`` asks for it, and ``machine`` moves one ENI from one
state to the next. ``reconcile`` compares with what the cloud says. ``rows`` know who has what; ``ledger``
keeps them.
"""
