"""Device models: a device answers reads and writes of its registers, knowing neither its port nor its irq."""
