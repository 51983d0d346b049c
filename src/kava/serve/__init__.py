"""Serve a reasoner over HTTP (`kava serve`)."""
