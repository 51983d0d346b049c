"""An HTTP service in front of a reasoner: `kava serve`."""
