"""Ray clusters: one on this machine, jobs handed to one, and manifests for Kubernetes, AWS and hosts."""
