"""Show on one machine what each lane does: hosts and switches as network namespaces, with real queues."""
