"""Measure the speed and memory of training and generation (`kava bench`)."""
