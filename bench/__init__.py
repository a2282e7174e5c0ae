"""The instrument: vdisk beside its peers, in pairs, in one run."""
