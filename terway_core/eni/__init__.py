"""The ENIs of one node and the addresses on them, kept warm for pods.

``pool`` gives out and takes back; ``planner`` decides what the cloud must be asked for; ``machine`` moves one
ENI from one state to the next; ``reconcile`` compares with what the cloud says; ``ledger`` keeps the rows.
"""
