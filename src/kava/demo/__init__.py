"""`kava demo`: a web page on which two models answer beside each other, as it happens."""
