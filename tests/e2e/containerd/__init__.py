"""containerd and runc on a node of the lab, on a machine of their own."""
