"""A web page on which two models answer side by side, shown as it happens (`kava demo`)."""
