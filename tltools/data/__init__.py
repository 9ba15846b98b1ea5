"""Images and labels: everything between the disk and the model, without torch."""
