"""terway: a plugin framework for pod networking on Alibaba Cloud.

Importing this package loads nothing else: the CNI plugin starts once per pod and pays for every module.
"""

__version__ = "0.1.0"
