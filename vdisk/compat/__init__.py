"""Which hypervisor or cloud takes an image: the facts as data, the checks, the verdict."""
